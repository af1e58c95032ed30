//! Lanes in an array, for processors that nothing else is written for.

use half::{bf16, f16};

use super::{HalfLine, Kernel, LANES, Lanes, Line, Simd};

/// Needs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portable;

impl Simd for Portable {
    type V = Lanes;

    const ROWS: usize = 2;
    const WIDE: bool = false;
    const BF16: bool = false;

    #[inline(always)]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> Lanes {
        *from
    }

    #[inline(always)]
    fn store(self, v: Lanes, to: &mut Lanes) {
        *to = v;
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, mut sum: Lanes) -> Lanes {
        for i in 0..LANES {
            sum[i] += a[i] * b[i];
        }
        sum
    }

    #[inline(always)]
    fn line_f32(self, line: &Line) -> Lanes {
        lanes(&line.0, f32::from_le_bytes)
    }

    #[inline(always)]
    fn line_bf16_first(self, line: &Line) -> Lanes {
        lanes(&line.0, |pair: [u8; 4]| f32::from_bits(u32::from_le_bytes(pair) << 16))
    }

    #[inline(always)]
    fn line_bf16_second(self, line: &Line) -> Lanes {
        lanes(&line.0, |pair: [u8; 4]| f32::from_bits(u32::from_le_bytes(pair) & 0xffff_0000))
    }

    #[inline(always)]
    fn half_bf16(self, half: &HalfLine) -> Lanes {
        lanes(half, |bytes| bf16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    fn half_f16(self, half: &HalfLine) -> Lanes {
        lanes(half, |bytes| f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    fn fma_bf16(self, _line: Lanes, _x: Lanes, _sum: Lanes) -> Lanes {
        unreachable!("Simd::BF16 is false")
    }

    #[inline(always)]
    fn prefetch(self, _at: *const Line) {}
}

/// Every lane from its bytes.
#[inline(always)]
fn lanes<const BYTES: usize>(bytes: &[u8], read: impl Fn([u8; BYTES]) -> f32) -> Lanes {
    let mut lanes = [0.0; LANES];
    for (lane, bytes) in lanes.iter_mut().zip(bytes.as_chunks().0) {
        *lane = read(*bytes);
    }
    lanes
}
