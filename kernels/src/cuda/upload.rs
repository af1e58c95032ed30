//! Bytes on their way to the device, through pinned memory.
//!
//! Copies from pinned memory run at the speed of the bus and beside the host's work. There are two
//! halves: one is filled while the other is copied.

use std::slice;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice, result};

use crate::error::Result;

use super::pieces::Pieces;
use super::status::{During, allocation};

const HALF_BYTES: usize = 8 << 20;

/// Writes to the device, in the order of its stream.
pub struct Upload {
    stream: Arc<CudaStream>,
    halves: [Pinned; 2],
    /// The half being filled.
    at: usize,
}

impl Upload {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let half = || Pinned::new(stream.context(), HALF_BYTES);
        Ok(Self { stream: Arc::clone(stream), halves: [half()?, half()?], at: 0 })
    }

    /// A writer to the memory from `address` on.
    pub fn to(&mut self, address: u64) -> Writer<'_> {
        Writer { upload: self, address, filled: 0 }
    }
}

/// Bytes that go to one place in device memory, one behind the other.
pub struct Writer<'a> {
    upload: &'a mut Upload,
    address: u64,
    filled: usize,
}

impl Writer<'_> {
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(HALF_BYTES - self.filled));
            let half = &mut self.upload.halves[self.upload.at];
            half.bytes()?[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == HALF_BYTES {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Pushes a weight: several threads fill one half while the bus empties the other.
    pub fn push_all(&mut self, mut pieces: Pieces<'_>) -> Result<()> {
        while !pieces.is_empty() {
            let half = &mut self.upload.halves[self.upload.at];
            self.filled += pieces.fill(&mut half.bytes()?[self.filled..]);
            if !pieces.is_empty() {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Leaves the next `bytes` on the device as they are.
    pub fn skip(&mut self, bytes: usize) -> Result<()> {
        self.send()?;
        self.address += bytes as u64;
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        let Upload { stream, halves, at } = &mut *self.upload;
        halves[*at].send(stream, self.filled, self.address)?;
        *at = 1 - *at;
        self.address += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

/// Pinned host memory that is copied from, and the end of its last copy.
pub struct Pinned {
    host: PinnedHostSlice<u8>,
    copied: CudaEvent,
}

impl Pinned {
    pub fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        // SAFETY: the memory is unset, but nothing is read from it before it is written.
        let host = unsafe { context.alloc_pinned(bytes) };
        let host = host.map_err(|error| allocation(error, "pinned memory", bytes))?;
        let copied = context.new_event(None).during("creating an event")?;
        Ok(Self { host, copied })
    }

    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// The memory, once its last copy is done.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        self.copied.synchronize().during("waiting for a copy")?;
        self.host.as_mut_slice().during("waiting for a copy")
    }

    /// Starts copying the first `bytes` to `address`.
    pub fn send(&mut self, stream: &CudaStream, bytes: usize, address: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let from = &self.host.as_slice().during("waiting for a copy")?[..bytes];
        // SAFETY: the caller owns `bytes` at `address`, and the host's stay until `copied`.
        let copy = unsafe { result::memcpy_htod_async(address, from, stream.cu_stream()) };
        copy.during("copying to the device")?;
        self.copied.record(stream).during("recording an event")
    }
}

/// Values that are nothing but their bytes.
///
/// # Safety
///
/// The type has no padding.
pub unsafe trait Plain: Copy {}

// SAFETY: integers and arrays of such values have none.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// The bytes of values, as kernels read them.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: values without padding are initialised bytes, as many as their size.
    unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
