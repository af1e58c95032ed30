//! How the element types lie in the lines of a panel, and how a line multiplies.
//!
//! A panel holds sixteen rows of a matrix side by side, so that a line brings the same one or two
//! columns of all sixteen, and a vector of sums takes `line * x` with no shuffle:
//!
//! | type | line |
//! |---|---|
//! | f32 | column `c` of 16 rows |
//! | f16 | column `c` of 16 rows, column `c + 1` of 16 rows |
//! | bf16 | columns `c` and `c + 1` of row 0, of row 1, ... of row 15 |
//!
//! The bf16 order is that of the AVX512_BF16 products; without them, a shift and a mask make f32 of
//! either half.

use contract::tensor::DType;

use crate::element::bf16_bits;

use super::simd::{Kernel, LANES, Line, Simd, halves};

/// Columns in a line.
pub const fn line_columns(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 1,
        DType::F16 | DType::Bf16 => 2,
    }
}

/// Where the element of `lane` and `column` lies in a panel: the line, and the byte in it.
pub const fn place(dtype: DType, lane: usize, column: usize) -> (usize, usize) {
    match dtype {
        DType::F32 => (column, lane * 4),
        DType::F16 => (column / 2, (column % 2 * LANES + lane) * 2),
        DType::Bf16 => (column / 2, (lane * 2 + column % 2) * 2),
    }
}

/// The arithmetic of one element type on one kind of processor.
pub trait Format: 'static {
    /// Columns in a line.
    const COLUMNS: usize;
    /// Values of `x` that a row brings to a line: each is multiplied once.
    const PARTS: usize;

    /// What a row with these columns of `x` brings.
    fn pack(x: [f32; 2]) -> [f32; 2];

    /// What part `part` of `x` is multiplied with.
    fn part<S: Simd>(simd: S, line: &Line, part: usize) -> S::V;

    /// Sixteen elements that lie side by side, of a line with `COLUMNS` times sixteen.
    fn natural<S: Simd>(simd: S, line: &Line, sixteen: usize) -> S::V;

    /// Adds the product of one part.
    fn fma<S: Simd>(simd: S, line: S::V, x: S::V, sum: S::V) -> S::V;
}

/// f32.
pub struct F32;

/// f16, widened.
pub struct F16;

/// bf16, widened.
pub struct Bf16;

/// bf16 by the processor's own products; `x` is rounded to bf16.
pub struct Bf16Native;

impl Format for F32 {
    const COLUMNS: usize = 1;
    const PARTS: usize = 1;

    #[inline(always)]
    fn pack(x: [f32; 2]) -> [f32; 2] {
        x
    }

    #[inline(always)]
    fn part<S: Simd>(simd: S, line: &Line, _part: usize) -> S::V {
        simd.line_f32(line)
    }

    #[inline(always)]
    fn natural<S: Simd>(simd: S, line: &Line, _sixteen: usize) -> S::V {
        simd.line_f32(line)
    }

    #[inline(always)]
    fn fma<S: Simd>(simd: S, line: S::V, x: S::V, sum: S::V) -> S::V {
        simd.fma(line, x, sum)
    }
}

impl Format for F16 {
    const COLUMNS: usize = 2;
    const PARTS: usize = 2;

    #[inline(always)]
    fn pack(x: [f32; 2]) -> [f32; 2] {
        x
    }

    #[inline(always)]
    fn part<S: Simd>(simd: S, line: &Line, part: usize) -> S::V {
        simd.half_f16(halves(line)[part])
    }

    #[inline(always)]
    fn natural<S: Simd>(simd: S, line: &Line, sixteen: usize) -> S::V {
        simd.half_f16(halves(line)[sixteen])
    }

    #[inline(always)]
    fn fma<S: Simd>(simd: S, line: S::V, x: S::V, sum: S::V) -> S::V {
        simd.fma(line, x, sum)
    }
}

impl Format for Bf16 {
    const COLUMNS: usize = 2;
    const PARTS: usize = 2;

    #[inline(always)]
    fn pack(x: [f32; 2]) -> [f32; 2] {
        x
    }

    #[inline(always)]
    fn part<S: Simd>(simd: S, line: &Line, part: usize) -> S::V {
        if part == 0 { simd.line_bf16_first(line) } else { simd.line_bf16_second(line) }
    }

    #[inline(always)]
    fn natural<S: Simd>(simd: S, line: &Line, sixteen: usize) -> S::V {
        simd.half_bf16(halves(line)[sixteen])
    }

    #[inline(always)]
    fn fma<S: Simd>(simd: S, line: S::V, x: S::V, sum: S::V) -> S::V {
        simd.fma(line, x, sum)
    }
}

impl Format for Bf16Native {
    const COLUMNS: usize = 2;
    const PARTS: usize = 1;

    /// A pair of bf16 in the bits of one f32.
    #[inline(always)]
    fn pack(x: [f32; 2]) -> [f32; 2] {
        let [first, second] = x.map(|x| u32::from(bf16_bits(x)));
        [f32::from_bits(first | second << 16), 0.0]
    }

    #[inline(always)]
    fn part<S: Simd>(simd: S, line: &Line, _part: usize) -> S::V {
        simd.line_f32(line)
    }

    #[inline(always)]
    fn natural<S: Simd>(simd: S, line: &Line, sixteen: usize) -> S::V {
        simd.half_bf16(halves(line)[sixteen])
    }

    #[inline(always)]
    fn fma<S: Simd>(simd: S, line: S::V, x: S::V, sum: S::V) -> S::V {
        simd.fma_bf16(line, x, sum)
    }
}

/// Work that depends on the format, see [`Kernel`].
pub trait Formatted {
    /// What it returns.
    type Output;

    /// Does the work.
    fn run<S: Simd, F: Format>(self, simd: S) -> Self::Output;
}

/// Work on stored elements of one type.
pub struct Stored<K> {
    pub dtype: DType,
    pub work: K,
}

impl<K: Formatted> Kernel for Stored<K> {
    type Output = K::Output;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> K::Output {
        match self.dtype {
            DType::F32 => self.work.run::<S, F32>(simd),
            DType::F16 => self.work.run::<S, F16>(simd),
            DType::Bf16 if S::BF16 => self.work.run::<S, Bf16Native>(simd),
            DType::Bf16 => self.work.run::<S, Bf16>(simd),
        }
    }
}
