//! A weight matrix in f32, its values rounded to the element type it stands for.

use contract::tensor::DType;

use crate::element;
use crate::ops::WeightView;

/// Row-major `[rows, cols]`.
pub struct Tensor {
    pub rows: usize,
    pub cols: usize,
    data: Vec<f32>,
}

impl Tensor {
    /// The rows of all views, one view below the other.
    pub fn stack(parts: &[WeightView<'_>], dtype: DType) -> Self {
        let mut data = Vec::new();
        for part in parts {
            for row in 0..part.rows {
                match part.row(row) {
                    None => data.extend(std::iter::repeat_n(0.0, part.cols)),
                    Some(bytes) => data.extend(
                        element::values(part.dtype, bytes)
                            .map(|value| element::round(dtype, value)),
                    ),
                }
            }
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Self { rows, cols: parts[0].cols, data }
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }
}
