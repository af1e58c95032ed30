//! Weights on the device.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::error::Result;
use crate::ops::WeightView;

use super::memory::Memory;
use super::pieces::{Pieces, Types};
use super::upload::{Upload, Writer};

/// A matrix `[rows, cols]`, or a vector `[1, cols]`.
///
/// Matrices are in the backend's element type, or in f32 if they were asked for so (the rope
/// table). Vectors are in both: normalisations read f32, and the bias of a product has the type of
/// its result.
pub struct Weight {
    pub rows: usize,
    pub cols: usize,
    element: Option<Memory>,
    full: Option<Memory>,
    dtype: DType,
}

impl Weight {
    /// The rows of all views, one view below the other, rounded to `dtype` for a backend of
    /// `held`.
    pub fn stack(
        stream: &Arc<CudaStream>,
        upload: &mut Upload,
        parts: &[WeightView<'_>],
        (dtype, held): (DType, DType),
    ) -> Result<Self> {
        let (rows, cols) = (parts.iter().map(|part| part.rows).sum(), parts[0].cols);
        let mut keep = |as_dtype: DType| -> Result<Memory> {
            let memory = Memory::zeroed(stream, rows * cols * as_dtype.bytes(), "weights")?;
            let mut writer = upload.to(memory.address());
            let types = Types { rounded: dtype, held: as_dtype };
            parts.iter().try_for_each(|part| push(&mut writer, part, types))?;
            writer.finish()?;
            Ok(memory)
        };
        let wants_full = held != DType::F32 && (rows == 1 || dtype == DType::F32);
        let full = if wants_full { Some(keep(DType::F32)?) } else { None };
        let element = if rows == 1 || full.is_none() { Some(keep(held)?) } else { None };
        Ok(Self { rows, cols, element, full, dtype: held })
    }

    /// Where it lies in the backend's element type.
    pub fn elements(&self) -> u64 {
        let memory = self.element.as_ref();
        memory.expect("a matrix kept in f32 is no operand of a product: this is a bug").address()
    }

    /// Where a vector lies in either of its types.
    pub fn vector(&self, dtype: DType) -> u64 {
        if dtype == self.dtype { self.elements() } else { self.floats() }
    }

    /// Where it lies in f32.
    pub fn floats(&self) -> u64 {
        let own = if self.dtype == DType::F32 { &self.element } else { &self.full };
        own.as_ref().expect("this matrix is not kept in f32: this is a bug").address()
    }
}

/// Brings one view to the device. What stands for zeros is skipped: the memory has them already.
fn push(writer: &mut Writer<'_>, part: &WeightView<'_>, types: Types) -> Result<()> {
    if part.bytes.is_empty() {
        return writer.skip(part.rows * part.cols * types.held.bytes());
    }
    writer.push_all(Pieces::new(*part, types))
}
