//! Sums, maxima and exponentials written so that the compiler vectorises them.

/// Running values kept side by side: a single one would be a chain as long as the input.
const LANES: usize = 16;

/// The largest of all; of none, negative infinity. NaN counts as nothing.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for values in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of squares.
#[inline(always)]
pub fn squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for values in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value * value;
        }
    }
    sum_lanes(lanes)
}

/// The sum of all.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for values in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value;
        }
    }
    sum_lanes(lanes)
}

/// The sum of a power of two of lanes: halves onto halves.
#[inline(always)]
pub fn sum_lanes<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `e^x` to two units in the last place; exact at 0, 0 where it would not be a normal number, and
/// 2^127 at most. After Cephes: `x = n ln 2 + r`, and a polynomial in `r`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -87.336_54;
    let clamped = x.clamp(LEAST, 88.028_32);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x < LEAST { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere_and_exact_at_its_ends() {
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-88.0)), (1.0, 0.0, 0.0));
        assert!(exp(f32::INFINITY) > 1e38 && exp(f32::NAN).is_nan());
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (exp(x), f64::from(x).exp());
            assert!((f64::from(got) / want - 1.0).abs() < 2.4e-7, "exp({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn every_element_counts_once_whatever_the_length() {
        for length in 0..70 {
            let values: Vec<f32> = (1..=length).map(|i| i as f32).collect();
            assert_eq!(sum(&values), (length * (length + 1) / 2) as f32);
            let of_squares = length * (length + 1) * (2 * length + 1) / 6;
            assert_eq!(squares(&values), of_squares as f32);
            let last = if length == 0 { f32::NEG_INFINITY } else { length as f32 };
            assert_eq!(largest(&values), last);
        }
    }
}
