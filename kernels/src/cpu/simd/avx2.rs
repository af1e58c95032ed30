//! Lanes in two 256-bit registers: AVX2 with FMA and F16C (Haswell, Zen and later).

use std::arch::x86_64::*;

use super::{HalfLine, Kernel, Lanes, Line, Simd};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, if there is one.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

impl Simd for Avx2 {
    type V = [__m256; 2];

    const ROWS: usize = 6;
    const WIDE: bool = false;
    const BF16: bool = false;

    #[inline(always)]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> Self::V {
        let (low, high) = from.split_at(8);
        // SAFETY: as above; both halves are eight f32 long.
        unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] }
    }

    #[inline(always)]
    fn store(self, v: Self::V, to: &mut Lanes) {
        let (low, high) = to.split_at_mut(8);
        // SAFETY: as above; both halves are eight f32 long.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), v[1]);
        }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], sum[0]), _mm256_fmadd_ps(a[1], b[1], sum[1])] }
    }

    #[inline(always)]
    fn line_f32(self, line: &Line) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let [low, high] = words(line);
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn line_bf16_first(self, line: &Line) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let [low, high] = words(line);
            [upper(low), upper(high)]
        }
    }

    #[inline(always)]
    fn line_bf16_second(self, line: &Line) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let [low, high] = words(line);
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            [
                _mm256_castsi256_ps(_mm256_and_si256(low, mask)),
                _mm256_castsi256_ps(_mm256_and_si256(high, mask)),
            ]
        }
    }

    #[inline(always)]
    fn half_bf16(self, half: &HalfLine) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let [low, high] = quarters(half);
            [upper(_mm256_cvtepu16_epi32(low)), upper(_mm256_cvtepu16_epi32(high))]
        }
    }

    #[inline(always)]
    fn half_f16(self, half: &HalfLine) -> Self::V {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let [low, high] = quarters(half);
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    fn fma_bf16(self, _line: Self::V, _x: Self::V, _sum: Self::V) -> Self::V {
        unreachable!("Simd::BF16 is false")
    }

    #[inline(always)]
    fn prefetch(self, at: *const Line) {
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// The bf16 in the lower half of every word, as f32.
#[inline]
#[target_feature(enable = "avx2")]
fn upper(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
}

/// A line as two registers.
#[inline]
#[target_feature(enable = "avx2")]
fn words(line: &Line) -> [__m256i; 2] {
    let at: *const __m256i = line.0.as_ptr().cast();
    // SAFETY: a line is two registers long and aligned to its length.
    unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
}

/// Half a line as two registers.
#[inline]
#[target_feature(enable = "avx2")]
fn quarters(half: &HalfLine) -> [__m128i; 2] {
    let at: *const __m128i = half.as_ptr().cast();
    // SAFETY: half a line is two registers long.
    unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))] }
}
