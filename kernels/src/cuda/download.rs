//! Bytes on their way back from the device, through pinned memory that the host reads fast.

use std::sync::Arc;
use std::{ptr, slice};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use crate::error::Result;

use super::memory::Memory;
use super::status::{During, allocation};

/// Pinned host memory. The kind that copies to the device come from is written fast and read
/// slowly.
pub struct Download {
    context: Arc<CudaContext>,
    start: ptr::NonNull<u8>,
    len: usize,
    /// Bytes of the last copy.
    copied: usize,
    /// The end of the last copy.
    there: CudaEvent,
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
        let there = context.new_event(None).during("creating an event")?;
        Ok(Self { context: Arc::clone(context), start, len, copied: 0, there })
    }

    /// Starts copying the first `bytes` of `from`, in the order of the stream. What was copied
    /// before is there, or nobody wants it.
    pub fn start(&mut self, stream: &CudaStream, from: &Memory, bytes: usize) -> Result<()> {
        assert!(bytes <= self.len && bytes <= from.bytes(), "{bytes} bytes: this is a bug");
        self.context.bind_to_thread().during("binding its context")?;
        self.copied = bytes;
        if bytes > 0 {
            // SAFETY: it is ours, `len` long and initialised.
            let to = unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), bytes) };
            // SAFETY: `from` lives, and nobody looks at `to` before it is there.
            let copied =
                unsafe { result::memcpy_dtoh_async(to, from.address(), stream.cu_stream()) };
            copied.during("copying to the host")?;
        }
        self.there.record(stream).during("recording an event")
    }

    /// Whether the last copy is there.
    pub fn is_there(&self) -> Result<bool> {
        self.there.try_is_complete().during("looking for a copy")
    }

    /// Waits for the last copy, and returns it.
    pub fn bytes(&mut self) -> Result<&[u8]> {
        self.there.synchronize().during("finishing what was launched")?;
        // SAFETY: it is ours, initialised, and nothing is being copied into it.
        Ok(unsafe { slice::from_raw_parts(self.start.as_ptr(), self.copied) })
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A failure leaves nothing to be done.
        let _ = self.context.bind_to_thread();
        let _ = self.there.synchronize();
        // SAFETY: it came from the same driver, and nothing is being copied into it.
        let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
    }
}
