//! A matrix in panels of sixteen rows, see [`super::format`].

use contract::tensor::DType;

use crate::element;
use crate::error::Result;

use super::format::{line_columns, place};
use super::lines::Lines;
use super::simd::{LANES, Line};

/// `[rows, cols]`, rows padded to panels and columns to lines with zeros.
pub struct Panels {
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    lines: Lines,
}

impl Panels {
    /// A matrix of zeros.
    pub fn new(rows: usize, cols: usize, dtype: DType) -> Result<Self> {
        let lines = Lines::new(rows.div_ceil(LANES) * cols.div_ceil(line_columns(dtype)))?;
        Ok(Self { dtype, rows, cols, lines })
    }

    /// A matrix of `values`, row-major, rounded to `dtype`.
    pub fn of(values: &[f32], rows: usize, cols: usize, dtype: DType) -> Result<Self> {
        let mut matrix = Self::new(rows, cols, dtype)?;
        for (i, value) in values.iter().enumerate() {
            matrix.put(i / cols, i % cols, *value);
        }
        Ok(matrix)
    }

    /// Lines in a panel.
    pub fn panel_lines(&self) -> usize {
        self.cols.div_ceil(line_columns(self.dtype))
    }

    /// The lines of one panel.
    pub fn panel(&self, panel: usize) -> &[Line] {
        &self.lines[panel * self.panel_lines()..][..self.panel_lines()]
    }

    /// Fills a row from elements of the matrix' own type.
    pub fn set_row(&mut self, row: usize, elements: &[u8]) {
        let lines = self.panel_lines();
        let panel = &mut self.lines[row / LANES * lines..][..lines];
        match self.dtype.bytes() {
            4 => scatter::<4>(panel, self.dtype, row % LANES, elements),
            _ => scatter::<2>(panel, self.dtype, row % LANES, elements),
        }
    }

    /// Sets one element. A column of padding is allowed in the last line.
    pub fn put(&mut self, row: usize, column: usize, value: f32) {
        let (line, byte) = place(self.dtype, row % LANES, column);
        let line = row / LANES * self.panel_lines() + line;
        element::put(self.dtype, value, &mut self.lines[line].0[byte..]);
    }

    /// Reads a row.
    pub fn get_row(&self, row: usize, out: &mut [f32]) {
        let panel = self.panel(row / LANES);
        for (column, out) in out.iter_mut().enumerate() {
            let (line, byte) = place(self.dtype, row % LANES, column);
            *out = element::read(self.dtype, &panel[line].0[byte..]);
        }
    }
}

/// Writes elements of `BYTES` bytes into one lane of a panel, from column 0 on.
fn scatter<const BYTES: usize>(panel: &mut [Line], dtype: DType, lane: usize, elements: &[u8]) {
    for (column, element) in elements.as_chunks::<BYTES>().0.iter().enumerate() {
        let (line, byte) = place(dtype, lane, column);
        panel[line].0[byte..][..BYTES].copy_from_slice(element);
    }
}
