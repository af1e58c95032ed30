//! Device memory: an owner, and the activations that operations read and write.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use crate::element;
use crate::error::Result;
use crate::ops::Copied;

use super::status::{During, allocation};
use super::upload::Upload;

/// Memory on the device, freed in the order of the stream it was made on.
pub struct Memory {
    slice: CudaSlice<u8>,
    address: u64,
}

impl Memory {
    /// `bytes` zeros, aligned to 256. `what` names them if there is no room.
    pub fn zeroed(stream: &Arc<CudaStream>, bytes: usize, what: &'static str) -> Result<Self> {
        // No bytes have no address; a kernel that is told to touch none of them still gets one.
        let slice = stream.alloc_zeros::<u8>(bytes.max(1));
        let slice = slice.map_err(|error| allocation(error, what, bytes))?;
        let address = slice.device_ptr(stream).0;
        Ok(Self { slice, address })
    }

    /// As kernels take it.
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.slice.len()
    }

    /// Waits for the stream, and copies the bytes from `start` to the host.
    pub fn read(&self, stream: &Arc<CudaStream>, start: usize, into: &mut [u8]) -> Result<()> {
        let from = self.slice.slice(start..start + into.len());
        stream.memcpy_dtoh(&from, into).during("copying to the host")?;
        stream.synchronize().during("finishing what was launched")
    }

    /// Replaces the first `bytes` by those of `from`, in the order of the stream.
    fn copy_from(&mut self, from: &Self, bytes: usize) -> Result<()> {
        let stream = Arc::clone(self.slice.stream());
        let mut to = self.slice.slice_mut(..bytes);
        stream.memcpy_dtod(&from.slice.slice(..bytes), &mut to).during("copying on the device")
    }
}

/// Activations, logits or shrunk activations.
pub struct Buf {
    memory: Memory,
    dtype: DType,
    elements: usize,
}

impl Buf {
    pub(super) fn new(stream: &Arc<CudaStream>, elements: usize, dtype: DType) -> Result<Self> {
        let memory = Memory::zeroed(stream, elements * dtype.bytes(), "activations")?;
        Ok(Self { memory, dtype, elements })
    }

    /// Where it lies. An operation says what it takes it for: kernels do not check.
    pub(super) fn address(&self, dtype: DType, elements: usize) -> u64 {
        assert!(
            dtype == self.dtype && elements <= self.elements,
            "{elements} elements of {dtype} wanted, {} of {} there: this is a bug",
            self.elements,
            self.dtype
        );
        self.memory.address()
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn write(&mut self, upload: &mut Upload, values: &[f32]) -> Result<()> {
        let mut bytes = Vec::with_capacity(values.len() * self.dtype.bytes());
        values.iter().for_each(|value| element::write(self.dtype, *value, &mut bytes));
        let mut writer = upload.to(self.address(self.dtype, values.len()));
        writer.push(&bytes)?;
        writer.finish()
    }

    /// Waits for the stream, and reads `elements` from the `first` on.
    pub(super) fn read(
        &self,
        stream: &Arc<CudaStream>,
        first: usize,
        elements: usize,
    ) -> Result<Vec<f32>> {
        let mut bytes = vec![0; elements * self.dtype.bytes()];
        self.memory.read(stream, first * self.dtype.bytes(), &mut bytes)?;
        Ok(element::values(self.dtype, &bytes).collect())
    }
}

impl Copied for Buf {
    fn copy_from(&mut self, from: &Self, elements: usize) -> Result<()> {
        assert_eq!(self.dtype, from.dtype, "buffers of one kind are copied: this is a bug");
        self.memory.copy_from(&from.memory, elements * self.dtype.bytes())
    }
}
