//! Bytes on their way back from the device, through pinned memory that the host reads fast.

use std::sync::Arc;
use std::{ptr, slice};

use cudarc::driver::{CudaContext, CudaStream, result};

use crate::error::Result;

use super::memory::Memory;
use super::status::{During, allocation};

/// Pinned host memory. The kind that copies to the device come from is written fast and read
/// slowly.
pub struct Download {
    context: Arc<CudaContext>,
    start: ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is owned like a box's.
unsafe impl Send for Download {}

impl Download {
    pub fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self> {
        context.bind_to_thread().during("binding its context")?;
        // SAFETY: the memory is freed once, on drop.
        let start = unsafe { result::malloc_host(len, 0) };
        let start = start.map_err(|error| allocation(error, "pinned memory", len))?.cast::<u8>();
        // SAFETY: it is ours, and `len` long.
        unsafe { start.write_bytes(0, len) };
        let start = ptr::NonNull::new(start).expect("memory that was had is somewhere");
        Ok(Self { context: Arc::clone(context), start, len })
    }

    /// Waits for the stream, and returns the first `bytes` of `from`.
    pub fn read(&mut self, stream: &CudaStream, from: &Memory, bytes: usize) -> Result<&[u8]> {
        assert!(bytes <= self.len && bytes <= from.bytes(), "{bytes} bytes: this is a bug");
        self.context.bind_to_thread().during("binding its context")?;
        // SAFETY: it is ours, `len` long and initialised.
        let to = unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), bytes) };
        // SAFETY: `from` lives, and nobody looks at `to` before the stream has passed.
        let copied = unsafe { result::memcpy_dtoh_async(to, from.address(), stream.cu_stream()) };
        copied.during("copying to the host")?;
        stream.synchronize().during("finishing what was launched")?;
        Ok(to)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A failure leaves nothing to be done.
        let _ = self.context.bind_to_thread();
        // SAFETY: it came from the same driver, and nothing is being copied into it.
        let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
    }
}
