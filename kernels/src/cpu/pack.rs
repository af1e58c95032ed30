//! Rows of `x` side by side, as tiles read them.

use super::format::{Format, Formatted};
use super::simd::Simd;

/// Makes tiles of [`Simd::ROWS`] rows of `x`, the last one with what is left, see [`pack_tile`].
pub struct Pack<'a> {
    pub x: &'a [&'a [f32]],
    pub packed: &'a mut Vec<f32>,
}

impl Formatted for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, F: Format>(self, _simd: S) {
        self.packed.clear();
        for rows in self.x.chunks(S::ROWS) {
            pack_tile::<F>(rows, self.packed);
        }
    }
}

/// Appends `[line][part][row]` of some rows, columns padded to lines with zeros.
#[inline(always)]
pub fn pack_tile<F: Format>(rows: &[&[f32]], packed: &mut Vec<f32>) {
    let start = packed.len();
    let lines = rows[0].len().div_ceil(F::COLUMNS);
    packed.resize(start + lines * F::PARTS * rows.len(), 0.0);
    for (row, x) in rows.iter().enumerate() {
        let lines = packed[start..].chunks_exact_mut(F::PARTS * rows.len());
        for (columns, line) in x.chunks(F::COLUMNS).zip(lines) {
            let x = F::pack([columns[0], *columns.get(1).unwrap_or(&0.0)]);
            for part in 0..F::PARTS {
                line[part * rows.len() + row] = x[part];
            }
        }
    }
}
