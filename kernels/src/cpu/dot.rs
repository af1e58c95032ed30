//! Products with a few rows of a row-major matrix, the lanes along the columns.
//!
//! Panels pad sixteen rows; a shrink has as few rows as its lora rank and many columns, so here a
//! row stays as it is. Every output is one register of sums over the columns in order, added up at
//! the end: the same bits whatever is computed beside it.

use std::marker::PhantomData;

use contract::tensor::DType;

use crate::element;
use crate::error::Result;

use super::format::{Format, Formatted, line_columns};
use super::lines::Lines;
use super::simd::{Kernel, LANES, Line, Simd};

/// `[rows, cols]`, each row padded to lines with zeros.
pub struct Rows {
    pub dtype: DType,
    pub cols: usize,
    lines: Lines,
}

impl Rows {
    /// A matrix of `values`, row-major, rounded to `dtype`.
    pub fn new(values: &[f32], cols: usize, dtype: DType) -> Result<Self> {
        let row_lines = cols.div_ceil(LANES * line_columns(dtype));
        let mut lines = Lines::new(values.len() / cols.max(1) * row_lines)?;
        for (row, values) in values.chunks_exact(cols).enumerate() {
            let line_values = values.chunks(LANES * line_columns(dtype));
            for (line, values) in lines[row * row_lines..].iter_mut().zip(line_values) {
                for (element, value) in line.0.chunks_exact_mut(dtype.bytes()).zip(values) {
                    element::put(dtype, *value, element);
                }
            }
        }
        Ok(Self { dtype, cols, lines })
    }

    fn row(&self, row: usize) -> &[Line] {
        let row_lines = self.cols.div_ceil(LANES * line_columns(self.dtype));
        &self.lines[row * row_lines..][..row_lines]
    }
}

/// Rows of `x`, and rows of the matrix, that are multiplied together: their sums fit into sixteen
/// of the wide registers, or four pairs of the narrow ones.
const TOGETHER: usize = 4;

/// `out[m][i] = x[m] . matrix[first + i]`.
pub struct Dots<'a, 'out> {
    pub x: &'a [&'a [f32]],
    pub matrix: &'a Rows,
    pub first: usize,
    pub out: &'a mut [&'out mut [f32]],
}

impl Formatted for Dots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, F: Format>(self, simd: S) {
        let mut x = self.x;
        let mut out = self.out;
        while let (Some((xs, x_rest)), true) = (x.split_first_chunk::<TOGETHER>(), S::WIDE) {
            let (outs, out_rest) = out.split_at_mut(TOGETHER);
            dots::<S, F, TOGETHER>(simd, *xs, self.matrix, self.first, outs);
            (x, out) = (x_rest, out_rest);
        }
        for (x, out) in x.iter().zip(out.chunks_mut(1)) {
            dots::<S, F, 1>(simd, [*x], self.matrix, self.first, out);
        }
    }
}

/// All outputs of `M` rows of `x`.
#[inline(always)]
fn dots<S: Simd, F: Format, const M: usize>(
    simd: S,
    x: [&[f32]; M],
    matrix: &Rows,
    first: usize,
    out: &mut [&mut [f32]],
) {
    let count = out[0].len();
    let mut i = 0;
    while i < count {
        if count - i >= TOGETHER {
            let rows = std::array::from_fn(|n| matrix.row(first + i + n));
            let found = simd.enter(Dot::<F, M, TOGETHER> { x, rows, format: PhantomData });
            for (out, found) in out.iter_mut().zip(found) {
                out[i..][..TOGETHER].copy_from_slice(&found);
            }
            i += TOGETHER;
        } else {
            let rows = [matrix.row(first + i)];
            let found = simd.enter(Dot::<F, M, 1> { x, rows, format: PhantomData });
            for (out, found) in out.iter_mut().zip(found) {
                out[i] = found[0];
            }
            i += 1;
        }
    }
}

/// `x[m] . rows[n]` for all of both, the sums in registers.
struct Dot<'a, F, const M: usize, const N: usize> {
    x: [&'a [f32]; M],
    rows: [&'a [Line]; N],
    format: PhantomData<F>,
}

impl<F: Format, const M: usize, const N: usize> Kernel for Dot<'_, F, M, N> {
    type Output = [[f32; N]; M];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [[f32; N]; M] {
        let mut sums = [[simd.splat(0.0); N]; M];
        let (sixteens, tail) = (self.x[0].len() / LANES, self.x[0].len() % LANES);
        let x = self.x.map(|x| x.as_chunks::<LANES>().0);
        for i in 0..sixteens {
            let mut lanes = [simd.splat(0.0); M];
            for (lanes, x) in lanes.iter_mut().zip(x) {
                *lanes = simd.load(&x[i]);
            }
            self.add(simd, i, lanes, &mut sums);
        }
        if tail > 0 {
            let mut lanes = [simd.splat(0.0); M];
            for (lanes, x) in lanes.iter_mut().zip(self.x) {
                let mut padded = [0.0; LANES];
                padded[..tail].copy_from_slice(&x[sixteens * LANES..]);
                *lanes = simd.load(&padded);
            }
            self.add(simd, sixteens, lanes, &mut sums);
        }
        let mut out = [[0.0; N]; M];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = simd.sum(sum);
            }
        }
        out
    }
}

impl<F: Format, const M: usize, const N: usize> Dot<'_, F, M, N> {
    /// Adds the products with the `i`-th sixteen columns of each row.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, i: usize, x: [S::V; M], sums: &mut [[S::V; N]; M]) {
        for (n, row) in self.rows.iter().enumerate() {
            let line = &row[i / F::COLUMNS];
            if i.is_multiple_of(F::COLUMNS) {
                // The rows that come next: a row is a page or so, too short for the processor to
                // see where its reads lead.
                simd.prefetch((&raw const *line).wrapping_add(N * row.len()));
            }
            let row = F::natural(simd, line, i % F::COLUMNS);
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[n] = simd.fma(row, x, sums[n]);
            }
        }
    }
}
