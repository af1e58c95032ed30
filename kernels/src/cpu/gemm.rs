//! Products of rows with a matrix in panels: `out = x panels^T`.
//!
//! A group of panels is read from memory once and meets all rows of `x` while it lies in the L2
//! cache; so a batch costs the memory traffic of one row.

use std::marker::PhantomData;

#[cfg(target_arch = "x86_64")]
use contract::tensor::DType;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::format::{F32, Format, Formatted, Stored};
use super::pack::Pack;
use super::panels::Panels;
use super::simd::{LANES, Lanes, Line, Simd};
use super::tile::{ROWS_MAX, Tile, WIDE};
use super::workers::Workers;

/// What becomes of the sums.
#[derive(Clone, Copy)]
pub enum Onto<'a> {
    /// They replace the output.
    Zero,
    /// They replace it, with these added to every row.
    Bias(&'a [f32]),
    /// They are added to it.
    Output,
}

impl Onto<'_> {
    /// The same for the output columns from `column` on.
    fn after(self, column: usize) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[column..]),
            other => other,
        }
    }
}

/// Rows of `x` as the processor wants them, kept from one product to the next.
#[derive(Default)]
pub struct Scratch {
    values: Vec<f32>,
    lines: Vec<Line>,
}

/// `out = x matrix^T`, `out` `[rows, matrix.rows]`.
pub fn gemm(
    workers: &Workers,
    x: &[&[f32]],
    matrix: &Panels,
    onto: Onto<'_>,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (isa, dtype) = (workers.isa, matrix.dtype);
    #[cfg(target_arch = "x86_64")]
    if let (Some(amx), DType::Bf16) = (isa.amx(), dtype) {
        isa.run(amx::Pack { x, packed: &mut scratch.lines });
        let x = &scratch.lines[..];
        return workers.columns(out, matrix.rows, LANES * WIDE, |column, out| {
            let (first, onto) = (column / LANES, onto.after(column));
            isa.run(amx::Product { amx, x, matrix, first, onto, out });
        });
    }
    isa.run(Stored { dtype, work: Pack { x, packed: &mut scratch.values } });
    let x = &scratch.values[..];
    workers.columns(out, matrix.rows, LANES * WIDE, |column, out| {
        let (first, onto) = (column / LANES, onto.after(column));
        isa.run(Stored { dtype, work: Product { x, matrix, first, onto, out } });
    });
}

/// The share of a product in some columns of the output.
pub struct Product<'a, 'out> {
    /// All rows, as [`Pack`] makes them.
    pub x: &'a [f32],
    pub matrix: &'a Panels,
    /// The panel that makes the first column.
    pub first: usize,
    pub onto: Onto<'a>,
    /// The columns of each row.
    pub out: &'a mut [&'out mut [f32]],
}

impl Formatted for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, F: Format>(mut self, simd: S) {
        let mut widened = Vec::new();
        let mut column = 0;
        let columns = self.out[0].len();
        while column < columns {
            if S::WIDE && columns - column > LANES * (WIDE - 1) {
                self.group::<S, F, WIDE>(simd, column, &mut widened);
                column += LANES * WIDE;
            } else {
                self.group::<S, F, 1>(simd, column, &mut widened);
                column += LANES;
            }
        }
    }
}

impl Product<'_, '_> {
    /// All rows of the output columns that `N` panels make.
    #[inline(always)]
    fn group<S: Simd, F: Format, const N: usize>(
        &mut self,
        simd: S,
        column: usize,
        widened: &mut Vec<Line>,
    ) {
        let mut panels = [&[][..]; N];
        for (n, panel) in panels.iter_mut().enumerate() {
            *panel = self.matrix.panel(self.first + column / LANES + n);
        }
        // Widening to f32 takes instructions; past two tiles of rows it is cheaper done once.
        if F::PARTS == 2 && self.out.len() > 2 * S::ROWS {
            widen::<S, F, N>(simd, &mut panels, widened);
            self.tiles::<S, F32, N>(simd, column, panels);
        } else {
            self.tiles::<S, F, N>(simd, column, panels);
        }
    }

    #[inline(always)]
    fn tiles<S: Simd, F: Format, const N: usize>(
        &mut self,
        simd: S,
        column: usize,
        panels: [&[Line]; N],
    ) {
        let row_len = panels[0].len() * F::PARTS;
        let tiles = self.x.chunks(row_len * S::ROWS).zip(self.out.chunks_mut(S::ROWS));
        for (x, out) in tiles {
            let mut sums = [[0.0; LANES]; ROWS_MAX * WIDE];
            let format = PhantomData::<F>;
            simd.enter(Tile { x, rows: out.len(), panels, sums: &mut sums, stride: N, format });
            for (sums, out) in sums.chunks_exact(N).zip(out) {
                finish(sums, self.onto, column, out);
            }
        }
    }
}

/// Makes f32 lines of `panels`, in `widened`.
#[inline(always)]
fn widen<'a, S: Simd, F: Format, const N: usize>(
    simd: S,
    panels: &mut [&'a [Line]; N],
    widened: &'a mut Vec<Line>,
) {
    let lines = panels[0].len() * F::PARTS;
    widened.resize(lines * N, Line([0; 64]));
    for (panel, to) in panels.iter_mut().zip(widened.chunks_exact_mut(lines)) {
        for (line, to) in panel.iter().zip(to.chunks_exact_mut(F::PARTS)) {
            for (part, to) in to.iter_mut().enumerate() {
                let mut lanes = [0.0; LANES];
                simd.store(F::part(simd, line, part), &mut lanes);
                for (bytes, lane) in to.0.as_chunks_mut().0.iter_mut().zip(lanes) {
                    *bytes = lane.to_le_bytes();
                }
            }
        }
        *panel = to;
    }
}

/// Puts one row's sums where they belong; the last panel may be wider than the output.
#[inline(always)]
pub fn finish(sums: &[Lanes], onto: Onto<'_>, column: usize, out: &mut [f32]) {
    let out = out[column..].iter_mut().zip(sums.as_flattened());
    match onto {
        Onto::Zero => out.for_each(|(out, sum)| *out = *sum),
        Onto::Bias(bias) => {
            out.zip(&bias[column..]).for_each(|((out, sum), bias)| *out = *sum + *bias);
        }
        Onto::Output => out.for_each(|(out, sum)| *out += *sum),
    }
}
