//! Sums and exponentials written so that the compiler vectorises them.

use super::simd::{LANES, Lanes};

/// The sum of `f` over pairs, in sixteen lanes that are added up at the end.
#[inline(always)]
pub fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[i] += f(*a, *b);
    }
    sum(lanes)
}

/// The sum of lanes: halves onto halves.
#[inline(always)]
pub fn sum(mut lanes: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of all; of none, negative infinity.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for a in a.chunks(LANES) {
        for (lane, a) in lanes.iter_mut().zip(a) {
            *lane = if *a > *lane { *a } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// `e^x` to two units in the last place, from 2^-126 to 2^127; beyond, the value at that end. Exact
/// at 0. After Cephes: `x = n ln 2 + r`, and a polynomial in `r`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.336_54, 88.028_32);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere_and_exact_at_zero() {
        assert_eq!(exp(0.0), 1.0);
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (exp(x), f64::from(x).exp());
            assert!((f64::from(got) / want - 1.0).abs() < 2.4e-7, "exp({x}) = {got}, not {want}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(200.0) > 1e38);
    }
}
