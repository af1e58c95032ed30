//! Sixteen lanes of f32, in whatever registers the processor has for them.
//!
//! Every fast operation is written once as a [`Kernel`], generic over [`Simd`], and compiled once
//! for each instruction set. A value of a `Simd` type is the proof that the processor has it:
//! only detection makes one. That proof is what the `unsafe` blocks below rest on.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod portable;

use crate::math::sum_lanes;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// One vector in memory.
pub type Lanes = [f32; LANES];

/// A cache line of stored elements: what a panel brings to one step of a sum.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// Sixteen stored elements of two bytes.
pub type HalfLine = [u8; 32];

/// Work to be compiled for every instruction set. `run` must be `#[inline(always)]`, and so must
/// everything generic that it calls outside [`Simd::enter`]: a function of its own would be
/// compiled for the least processor.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// Does the work.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The operations on lanes.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen lanes.
    type V: Copy;

    /// Rows of the largest [`super::tile::Tile`] whose sums fit into registers.
    const ROWS: usize;
    /// Whether a tile is [`super::tile::WIDE`] panels wide, or one.
    const WIDE: bool;
    /// Whether bf16 products are one instruction, [`Simd::fma_bf16`].
    const BF16: bool;

    /// Runs a kernel in a function compiled for this instruction set.
    fn enter<K: Kernel>(self, kernel: K) -> K::Output;

    /// `x` in all lanes.
    fn splat(self, x: f32) -> Self::V;

    /// Reads lanes.
    fn load(self, from: &Lanes) -> Self::V;

    /// Writes lanes.
    fn store(self, v: Self::V, to: &mut Lanes);

    /// `a * b + sum`, rounded once where the processor can.
    fn fma(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V;

    /// Sixteen f32.
    fn line_f32(self, line: &Line) -> Self::V;

    /// The first bf16 of every pair in a line.
    fn line_bf16_first(self, line: &Line) -> Self::V;

    /// The second bf16 of every pair in a line.
    fn line_bf16_second(self, line: &Line) -> Self::V;

    /// Sixteen bf16 in a row.
    fn half_bf16(self, half: &HalfLine) -> Self::V;

    /// Sixteen f16 in a row.
    fn half_f16(self, half: &HalfLine) -> Self::V;

    /// Adds both products of every pair of bf16 in `line` with the pair in that lane of `x`. Only
    /// where [`Simd::BF16`] says so.
    fn fma_bf16(self, line: Self::V, x: Self::V, sum: Self::V) -> Self::V;

    /// Asks for the line at `at` ahead of its use. Any address will do.
    fn prefetch(self, at: *const Line);

    /// The sum of all lanes, in an order of its own.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        sum_lanes(lanes)
    }
}

/// The two halves of a line.
#[inline(always)]
pub fn halves(line: &Line) -> [&HalfLine; 2] {
    let (halves, _) = line.0.as_chunks();
    [&halves[0], &halves[1]]
}

/// Plain code without intrinsics, for the compiler to vectorise.
pub struct Plain<W>(pub W);

impl<W: FnOnce()> Kernel for Plain<W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        (self.0)();
    }
}
