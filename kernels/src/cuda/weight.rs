//! Weights on the device.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::element;
use crate::error::Result;
use crate::ops::WeightView;

use super::memory::Memory;
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
            parts.iter().try_for_each(|part| push(&mut writer, part, dtype, as_dtype))?;
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
fn push(writer: &mut Writer<'_>, part: &WeightView<'_>, dtype: DType, held: DType) -> Result<()> {
    let row_bytes = part.cols * held.bytes();
    if part.bytes.is_empty() {
        return writer.skip(part.rows * row_bytes);
    }
    let as_is = part.dtype == dtype && dtype == held;
    if as_is && part.stride == part.cols {
        return writer.push(&part.bytes[..part.rows * row_bytes]);
    }
    let (mut rounded, mut scratch) = (Vec::new(), Vec::new());
    for bytes in (0..part.rows).filter_map(|row| part.row(row)) {
        let bytes = element::convert(part.dtype, bytes, dtype, &mut rounded);
        writer.push(element::convert(dtype, bytes, held, &mut scratch))?;
    }
    Ok(())
}
