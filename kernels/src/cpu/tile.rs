//! The heart of every product: a few rows of `x` times a few panels, the sums in registers.
//!
//! One sum is one lane of one register. It takes the columns in rising order and nothing else, so
//! it has the same bits whatever the tile around it.

use std::marker::PhantomData;

use super::format::Format;
use super::simd::{Kernel, Lanes, Line, Simd};

/// Panels of a wide tile. With eight rows that makes 24 sums of 32 registers, and every line is
/// used eight times, every broadcast three times.
pub const WIDE: usize = 3;

/// Rows of the largest tile of any instruction set.
pub const ROWS_MAX: usize = 8;

/// Lines asked for ahead of their use: the arithmetic of a full tile fills the processor's window,
/// so that it would not reach the next loads in time by itself.
const AHEAD: usize = 64;

/// `sums[m][n] += x[m] . panels[n]`.
pub struct Tile<'a, F, const N: usize> {
    /// `[line][part][row]`, as [`super::pack`] makes it.
    pub x: &'a [f32],
    /// Rows of `x`; at most [`Simd::ROWS`].
    pub rows: usize,
    /// The lines of each panel, at least as many as `x` has.
    pub panels: [&'a [Line]; N],
    /// Those of row `m` and panel `n` at `m * stride + n`.
    pub sums: &'a mut [Lanes],
    pub stride: usize,
    pub format: PhantomData<F>,
}

impl<F: Format, const N: usize> Kernel for Tile<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.rows {
            1 => self.rows::<S, 1>(simd),
            2 => self.rows::<S, 2>(simd),
            3 if S::ROWS >= 3 => self.rows::<S, 3>(simd),
            4 if S::ROWS >= 4 => self.rows::<S, 4>(simd),
            5 if S::ROWS >= 5 => self.rows::<S, 5>(simd),
            6 if S::ROWS >= 6 => self.rows::<S, 6>(simd),
            7 if S::ROWS >= 7 => self.rows::<S, 7>(simd),
            8 if S::ROWS >= 8 => self.rows::<S, 8>(simd),
            rows => unreachable!("a tile of {rows} rows: this is a bug"),
        }
    }
}

impl<F: Format, const N: usize> Tile<'_, F, N> {
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(self, simd: S) {
        // Arrays of fixed size all the way: only loops of constant length end up in registers.
        let (x, _) = self.x.as_chunks::<M>();
        let panels = self.panels.map(|panel| &panel[..x.len() / F::PARTS]);
        let mut sums = [[simd.splat(0.0); N]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = simd.load(&self.sums[m * self.stride + n]);
            }
        }
        for (i, x) in x.chunks_exact(F::PARTS).enumerate() {
            let mut lines = [&panels[0][i]; N];
            for n in 0..N {
                lines[n] = &panels[n][i];
                simd.prefetch((&raw const *lines[n]).wrapping_add(AHEAD));
            }
            add::<S, F, M, N>(simd, lines, 0, &x[0], &mut sums);
            if F::PARTS == 2 {
                add::<S, F, M, N>(simd, lines, 1, &x[1], &mut sums);
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                simd.store(sum, &mut self.sums[m * self.stride + n]);
            }
        }
    }
}

/// Adds the products of one part of a line of each panel.
#[inline(always)]
fn add<S: Simd, F: Format, const M: usize, const N: usize>(
    simd: S,
    lines: [&Line; N],
    part: usize,
    x: &[f32; M],
    sums: &mut [[S::V; N]; M],
) {
    let mut factors = [simd.splat(0.0); N];
    for n in 0..N {
        factors[n] = F::part(simd, lines[n], part);
    }
    for m in 0..M {
        let x = simd.splat(x[m]);
        for n in 0..N {
            sums[m][n] = F::fma(simd, factors[n], x, sums[m][n]);
        }
    }
}

/// `sums[m][p] += x[m] . panels[p]` for any number of panels, `sums` `[row][panel]`.
#[inline(always)]
pub fn product<S: Simd, F: Format>(
    simd: S,
    x: &[f32],
    rows: usize,
    panels: &[&[Line]],
    sums: &mut [Lanes],
) {
    let (stride, format) = (panels.len(), PhantomData::<F>);
    let wide = if S::WIDE { panels.len() / WIDE * WIDE } else { 0 };
    for (group, start) in panels.as_chunks::<WIDE>().0.iter().zip((0..wide).step_by(WIDE)) {
        let sums = &mut sums[start..];
        simd.enter(Tile { x, rows, panels: *group, sums, stride, format });
    }
    for (panel, start) in panels[wide..].iter().zip(wide..) {
        let sums = &mut sums[start..];
        simd.enter(Tile { x, rows, panels: [panel], sums, stride, format });
    }
}
