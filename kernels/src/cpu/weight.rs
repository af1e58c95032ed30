//! Weights of the fast backend: matrices in panels, vectors in f32.

use contract::tensor::DType;

use crate::element;
use crate::error::Result;
use crate::ops::WeightView;

use super::panels::Panels;

/// A weight, its values rounded to the element type asked for.
pub enum Weight {
    /// Two rows and more.
    Matrix(Panels),
    /// One row, widened: vectors are small, and a panel would be sixteen times as large.
    Vector(Vec<f32>, DType),
}

impl Weight {
    /// The rows of all views, one view below the other.
    pub fn stack(parts: &[WeightView<'_>], dtype: DType) -> Result<Self> {
        let cols = parts[0].cols;
        let rows = parts.iter().flat_map(|part| (0..part.rows).map(move |row| (part, row)));
        let mut matrix = Panels::new(rows.clone().count(), cols, dtype)?;
        let mut scratch = Vec::new();
        for (i, (part, row)) in rows.enumerate() {
            if let Some(bytes) = part.row(row) {
                matrix.set_row(i, element::convert(part.dtype, bytes, dtype, &mut scratch));
            }
        }
        Ok(if matrix.rows == 1 { Self::vector_of(&matrix) } else { Self::Matrix(matrix) })
    }

    fn vector_of(matrix: &Panels) -> Self {
        let mut values = vec![0.0; matrix.cols];
        matrix.get_row(0, &mut values);
        Self::Vector(values, matrix.dtype)
    }

    /// Rows of the matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        match self {
            Self::Matrix(matrix) => matrix.rows,
            Self::Vector(..) => 1,
        }
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        match self {
            Self::Matrix(matrix) => matrix.cols,
            Self::Vector(values, _) => values.len(),
        }
    }

    /// Calls `work` with the weight in panels. A vector gets them on the spot: a product with a
    /// single row is rare.
    pub fn with_panels(&self, work: impl FnOnce(&Panels)) -> Result<()> {
        match self {
            Self::Matrix(matrix) => work(matrix),
            Self::Vector(values, dtype) => {
                work(&Panels::of(values, 1, values.len(), *dtype)?);
            }
        }
        Ok(())
    }

    /// The values of a weight that must be a vector.
    pub fn vector(&self) -> &[f32] {
        match self {
            Self::Vector(values, _) => values,
            Self::Matrix(matrix) => panic!("{} rows where a vector belongs: a bug", matrix.rows),
        }
    }

    /// Reads one row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Matrix(matrix) => matrix.get_row(row, out),
            Self::Vector(values, _) => out.copy_from_slice(values),
        }
    }
}
