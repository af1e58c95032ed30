//! Rotary position embeddings (arXiv 2104.09864): frequencies, their scaling, and the table.

use std::f64::consts::TAU;

/// How fast the pairs of a head rotate with position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// What was done to them for longer contexts.
    pub scaling: Scaling,
}

/// A change of frequencies, as `rope_type` names it in Hugging Face configs.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// `default`
    None,
    /// `linear`: all wavelengths times `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// `llama3`: long wavelengths times `factor`, short ones kept, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths over `original / low` are long.
        low: f64,
        /// Wavelengths under `original / high` are short.
        high: f64,
        /// Context length before the change.
        original: f64,
    },
}

impl Rope {
    /// Rows `[cos(dim / 2) | sin(dim / 2)]`, one a position.
    pub fn table(&self, dim: usize, positions: usize) -> Vec<f32> {
        let frequencies: Vec<f32> = self.frequencies(dim).collect();
        let mut table = Vec::with_capacity(positions * dim);
        for position in 0..positions {
            // In f32, because the models were trained with angles rounded like this.
            let angles = frequencies.iter().map(|frequency| position as f32 * frequency);
            table.extend(angles.clone().map(f32::cos));
            table.extend(angles.map(f32::sin));
        }
        table
    }

    /// Radians a position, one a pair.
    fn frequencies(&self, dim: usize) -> impl Iterator<Item = f32> {
        let plain = (0..dim / 2).map(move |pair| (2 * pair) as f64 / dim as f64);
        plain.map(|exponent| self.scaling.apply(self.theta.powf(-exponent)) as f32)
    }
}

impl Scaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, original } => {
                let turns = original * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA3: Scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };

    /// `_compute_llama3_parameters` of transformers, for theta 500 and dim 8.
    #[test]
    fn llama3_keeps_blends_and_stretches_as_transformers_does() {
        let rope = Rope { theta: 500.0, scaling: LLAMA3 };
        let found: Vec<f32> = rope.frequencies(8).collect();
        let expected = [1.0, 0.097_616_63, 0.005_590_17, 0.001_182_177];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} is not {expected}");
        }
    }

    #[test]
    fn linear_scaling_stretches_positions() {
        let plain = Rope { theta: 1e4, scaling: Scaling::None };
        let linear = Rope { theta: 1e4, scaling: Scaling::Linear { factor: 4.0 } };
        assert_eq!(plain.table(8, 3)[16..], linear.table(8, 9)[64..]);
    }
}
