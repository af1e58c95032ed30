//! Device memory of one rank that all ranks of its group read and write.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, result};

use crate::error::{Error, Result};

use super::device::Device;
use super::link::{State, Stop};
use super::peer::{AREA_BYTES, BLOCKS_MAX, FLAGS_BYTES};
use super::status::{During, allocation};

const GIVEN_UP: u32 = 1;

/// One rank's area, laid out as `peer.cuh` says, and the word that ends its waiting.
pub struct PeerArea {
    /// What a rank waits for: not zero when the group is given up.
    stop: Word,
    memory: Plain,
    /// Blocks of threads that can wait here at once, for each rank on this device.
    pub blocks: usize,
}

impl PeerArea {
    /// An area on the device of a rank that shares it with `sharing` ranks, itself included.
    pub fn new(device: &Device, sharing: usize) -> Result<Self> {
        Ok(Self {
            blocks: room(device, sharing)?,
            memory: Plain::new(&device.context)?,
            stop: Word::new(&device.context)?,
        })
    }

    /// Where the device finds it.
    pub fn start(&self) -> u64 {
        self.memory.start
    }

    /// Where the device finds the word that ends its waiting.
    pub fn stop_address(&self) -> u64 {
        self.stop.0.as_ptr() as u64
    }

    /// Lets a device reach this memory.
    pub fn open_to(&self, context: &Arc<CudaContext>) -> Result<()> {
        let (own, other) = (&self.memory.context, context);
        if own.ordinal() == other.ordinal() {
            return Ok(());
        }
        if !reaches(other.ordinal(), own.ordinal())? {
            return Err(Error::Device(format!(
                "device {} cannot read the memory of device {}: they have no peer access; \
                 comm = \"nccl\" would do",
                other.ordinal(),
                own.ordinal()
            )));
        }
        other.bind_to_thread().during("binding its context")?;
        // SAFETY: both contexts are alive.
        match unsafe { sys::cuCtxEnablePeerAccess(own.cu_ctx(), 0) } {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            status => status.result().during("opening the memory of a peer"),
        }
    }

    /// How the waiting of this rank's device has gone so far.
    pub fn state(&self) -> State {
        match self.stop.get().load(Ordering::Acquire) {
            0 => State::Well,
            GIVEN_UP => State::Stopped,
            _ => State::TimedOut,
        }
    }
}

impl Stop for PeerArea {
    fn stop(&self) {
        // What a rank has written itself tells more.
        let _ = self.stop.get().compare_exchange(0, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Whether one device can read and write the memory of another.
pub fn reaches(from: usize, to: usize) -> Result<bool> {
    let device = |ordinal: usize| result::device::get(ordinal as i32).during("asking for a device");
    let (from, to, mut can) = (device(from)?, device(to)?, 0);
    // SAFETY: the pointer is to a live integer, and both handles are the driver's own.
    let asked = unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, from, to) };
    asked.result().during("asking for peer access")?;
    Ok(from == to || can != 0)
}

/// Blocks of a collective that each of `sharing` ranks may have on a device. Blocks of all of them
/// wait for each other, so all must fit at once.
fn room(device: &Device, sharing: usize) -> Result<usize> {
    let processors = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let processors = device.context.attribute(processors).during("counting its processors")?;
    let processors = usize::try_from(processors).unwrap_or_default();
    share(processors, device.kernels.peer.blocks_of_processor()?, sharing)
}

fn share(processors: usize, blocks_of_processor: usize, sharing: usize) -> Result<usize> {
    match processors * blocks_of_processor / sharing {
        0 => Err(Error::Device(format!(
            "{sharing} ranks on one device of {processors} multiprocessors: their collectives wait \
             for each other and do not fit at once; fewer ranks would do"
        ))),
        blocks => Ok(blocks.min(BLOCKS_MAX)),
    }
}

/// Memory that is in no pool: only such memory opens to peers with its whole context.
struct Plain {
    start: u64,
    context: Arc<CudaContext>,
}

impl Plain {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        context.bind_to_thread().during("binding its context")?;
        // SAFETY: the memory is unset; the flags are zeroed below, and the rest is written before
        // it is read.
        let start = unsafe { result::malloc_sync(AREA_BYTES) };
        let start = start.map_err(|error| allocation(error, "memory between peers", AREA_BYTES))?;
        let memory = Self { start, context: Arc::clone(context) };
        // SAFETY: the memory is this long, and nobody else knows it yet.
        unsafe { result::memset_d8_sync(start, 0, FLAGS_BYTES) }.during("zeroing flags")?;
        context.synchronize().during("zeroing flags")?;
        Ok(memory)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `new` and freed once; whoever used it has waited for its
            // stream. A failure leaves nothing to be done.
            let _ = unsafe { result::free_sync(self.start) };
        }
    }
}

/// One word of host memory that devices read and write too.
struct Word(NonNull<AtomicU32>);

// SAFETY: it is an atomic in memory that any thread may access, and freed by its only owner.
unsafe impl Send for Word {}
// SAFETY: as above.
unsafe impl Sync for Word {}

impl Word {
    fn new(context: &Arc<CudaContext>) -> Result<Self> {
        context.bind_to_thread().during("binding its context")?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        let what = "a word between host and device";
        // SAFETY: it is written before it is read.
        let word = unsafe { result::malloc_host(size_of::<AtomicU32>(), flags) };
        let word = word.map_err(|error| allocation(error, what, size_of::<AtomicU32>()))?;
        let none = || Error::Memory { what, bytes: size_of::<AtomicU32>() };
        let word = NonNull::new(word.cast::<AtomicU32>()).ok_or_else(none)?;
        // SAFETY: the driver aligns what it allocates to pages.
        unsafe { word.write(AtomicU32::new(0)) };
        Ok(Self(word))
    }

    fn get(&self) -> &AtomicU32 {
        // SAFETY: it was written by `new` and lives as long as its owner.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` and freed once. A failure leaves nothing to be done.
        let _ = unsafe { result::free_host(self.0.as_ptr().cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_too_small_for_its_ranks_is_refused() {
        assert_eq!(share(132, 1, 8).unwrap(), 16);
        assert_eq!(share(132, 2, 2).unwrap(), BLOCKS_MAX);
        assert_eq!(share(8, 1, 8).unwrap(), 1);
        let why = share(7, 1, 8).unwrap_err().to_string();
        assert!(why.contains("8 ranks") && why.contains("7 multiprocessors"), "{why}");
    }
}
