//! Lanes in one 512-bit register: AVX-512, with or without its bf16 products.

use std::arch::x86_64::*;

use super::{HalfLine, Kernel, Lanes, Line, Simd};

/// Proof that the processor has AVX-512 F, BW, DQ and VL (Skylake-X, Zen 4 and later), and with
/// `BF16` also AVX512_BF16 (Cooper Lake, Sapphire Rapids, Zen 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// The proof, if there is one.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && (!BF16 || is_x86_feature_detected!("avx512bf16"));
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn compiled<S: Simd, K: Kernel>(simd: S, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
fn compiled_bf16<S: Simd, K: Kernel>(simd: S, kernel: K) -> K::Output {
    kernel.run(simd)
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;

    const ROWS: usize = 8;
    const WIDE: bool = true;
    const BF16: bool = BF16;

    #[inline(always)]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { if BF16 { compiled_bf16(self, kernel) } else { compiled(self, kernel) } }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, from: &Lanes) -> __m512 {
        // SAFETY: as above; the register is as long as the lanes.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut Lanes) {
        // SAFETY: as above; the register is as long as the lanes.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    fn line_f32(self, line: &Line) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { _mm512_castsi512_ps(words(line)) }
    }

    #[inline(always)]
    fn line_bf16_first(self, line: &Line) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words(line))) }
    }

    #[inline(always)]
    fn line_bf16_second(self, line: &Line) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(words(line), high))
        }
    }

    #[inline(always)]
    fn half_bf16(self, half: &HalfLine) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe {
            let words = _mm512_cvtepu16_epi32(half_words(half));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn half_f16(self, half: &HalfLine) -> __m512 {
        // SAFETY: `self` exists only where the processor has the features.
        unsafe { _mm512_cvtph_ps(half_words(half)) }
    }

    #[inline(always)]
    fn fma_bf16(self, line: __m512, x: __m512, sum: __m512) -> __m512 {
        assert!(BF16, "Simd::BF16 is false: this is a bug");
        // SAFETY: `self` exists only where the processor has the features, bf16 products among
        // them as asserted; the types differ in name only.
        unsafe {
            let [line, x] = std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([line, x]);
            _mm512_dpbf16_ps(sum, line, x)
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const Line) {
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// A line as a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(line: &Line) -> __m512i {
    // SAFETY: a line is as long as the register and aligned to its length.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// Half a line as a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn half_words(half: &HalfLine) -> __m256i {
    // SAFETY: half a line is as long as the register.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}
