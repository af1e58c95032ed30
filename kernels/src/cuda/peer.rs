//! Collectives of ranks of one process that reach each other's memory, on one device or on several.
//! Launches `peer_reduce.cu` and `peer_gather.cu`; `peer_reduce_norm.rs` launches the third.

use std::sync::Arc;
use std::time::Duration;

use contract::tensor::DType;

use crate::error::Result;

use super::Cuda;
use super::add_rms_norm::add_rms_norm;
use super::device::{Device, Grid, Kernel, to_u32};
use super::link::{Link, State};
use super::memory::{Buf, Memory};
use super::peer_area::PeerArea;
use super::peer_reduce_norm::{PeerReduceNormParams, pays};
use super::program::Programs;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerParams {
    areas: [u64; RANKS_MAX],
    epochs: u64,
    stop: u64,
    input: u64,
    out: u64,
    elements: u64,
    timeout: u64,
    rank: u32,
    ranks: u32,
    two_shots: u32,
    padding: u32,
}

const _: () = assert!(size_of::<PeerParams>() == 128);

/// Ranks of a group, at most.
pub const RANKS_MAX: usize = 8;

/// Blocks of a collective, at most; its threads; its area.
pub const BLOCKS_MAX: usize = 32;
pub const THREADS: u32 = 512;
pub const FLAGS_BYTES: usize = 4096;
pub const AREA_BYTES: usize = FLAGS_BYTES + (12 << 20);

/// Bytes that a block posts at once.
pub const CHUNK_BYTES: usize = 128 << 10;

/// Bytes that a block of threads moves at once.
const STRIDE_BYTES: usize = 16 * THREADS as usize;

/// The collectives, for the backend's element type and for f32.
pub struct PeerKernels {
    reduce: [Kernel<PeerParams>; 2],
    gather: [Kernel<PeerParams>; 2],
    /// For the backend's element type.
    pub reduce_norm: Kernel<PeerReduceNormParams>,
}

impl PeerKernels {
    pub fn new(programs: &Programs) -> Result<Self> {
        let both = |file, own, full| -> Result<_> {
            Ok([Kernel::new(programs, file, own)?, Kernel::new(programs, file, full)?])
        };
        Ok(Self {
            reduce: both("peer_reduce", "peer_reduce", "peer_reduce_f32")?,
            gather: both("peer_gather", "peer_gather", "peer_gather_f32")?,
            reduce_norm: Kernel::new(programs, "peer_reduce_norm", "peer_reduce_norm")?,
        })
    }

    /// Blocks of any of them that run on one multiprocessor at once.
    pub fn blocks_of_processor(&self) -> Result<usize> {
        let kernels = self.reduce.iter().chain(&self.gather);
        let blocks = kernels.map(|kernel| kernel.blocks_of_processor(THREADS));
        let least = |least: usize, blocks: Result<usize>| Ok(least.min(blocks?));
        blocks.chain([self.reduce_norm.blocks_of_processor(THREADS)]).try_fold(usize::MAX, least)
    }
}

/// One rank's end of a group of peers. Dropping it waits for its device.
pub struct Peer {
    pub(super) device: Arc<Device>,
    rank: usize,
    areas: Vec<Arc<PeerArea>>,
    /// How often each block has met its twins.
    epochs: Memory,
    /// Of a collective, at most.
    pub(super) blocks: usize,
    timeout: Duration,
}

impl Cuda {
    /// This rank's area, for a device that it shares with `sharing` ranks, itself included.
    pub fn peer_area(&self, sharing: usize) -> Result<PeerArea> {
        PeerArea::new(&self.device, sharing)
    }

    /// Joins the ranks whose areas these are, in order; `areas[rank]` is this one's own. Its device
    /// waits for a peer no longer than `timeout`.
    pub fn join_peers(
        &self,
        rank: usize,
        areas: Vec<Arc<PeerArea>>,
        timeout: Duration,
    ) -> Result<Peer> {
        assert!(areas.len() <= RANKS_MAX, "more peers than an area has flags for: this is a bug");
        areas.iter().try_for_each(|area| area.open_to(&self.device.context))?;
        let bytes = BLOCKS_MAX * size_of::<u32>();
        Ok(Peer {
            epochs: Memory::zeroed(&self.device.stream, bytes, "epochs")?,
            blocks: areas.iter().map(|area| area.blocks).min().unwrap_or(0),
            device: Arc::clone(&self.device),
            rank,
            areas,
            timeout,
        })
    }
}

impl Peer {
    fn launch(
        &self,
        [own, full]: &[Kernel<PeerParams>; 2],
        dtype: DType,
        (input, out, elements): (u64, u64, usize),
    ) -> Result<()> {
        let bytes = elements * dtype.bytes();
        let two_shots = wants_two_shots(self.areas.len(), bytes);
        let params = self.params((input, out, elements), two_shots);
        let blocks = bytes.div_ceil(STRIDE_BYTES).min(self.blocks);
        let kernel = if dtype == DType::F32 { full } else { own };
        self.device.launch(kernel, Grid::of(blocks, THREADS), &params)
    }

    /// What a collective of these many elements is told.
    pub(super) fn params(
        &self,
        (input, out, elements): (u64, u64, usize),
        two_shots: bool,
    ) -> PeerParams {
        let mut areas = [0; RANKS_MAX];
        areas.iter_mut().zip(&self.areas).for_each(|(to, area)| *to = area.start());
        PeerParams {
            areas,
            epochs: self.epochs.address(),
            stop: self.areas[self.rank].stop_address(),
            input,
            out,
            elements: elements as u64,
            timeout: u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX),
            rank: to_u32(self.rank),
            ranks: to_u32(self.areas.len()),
            two_shots: u32::from(two_shots),
            padding: 0,
        }
    }
}

/// Whether a sum is large enough that halving its traffic is worth a second meeting. Two ranks
/// have nothing to halve.
pub fn wants_two_shots(ranks: usize, bytes: usize) -> bool {
    match ranks {
        0..=2 => false,
        3..=4 => bytes >= 512 << 10,
        _ => bytes >= 256 << 10,
    }
}

impl Link for Peer {
    type Shared = PeerArea;

    fn all_reduce_sum(&mut self, buf: &mut Buf, elements: usize) -> Result<()> {
        let at = buf.address(buf.dtype(), elements);
        self.launch(&self.device.kernels.peer.reduce, buf.dtype(), (at, at, elements))
    }

    fn all_reduce_add_rms_norm(
        &mut self,
        residual: &mut Buf,
        norm: (&Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()> {
        let (ranks, width) = (self.areas.len(), norm.0.cols);
        if pays(ranks, rows, width * hidden.dtype().bytes()) {
            return self.reduce_norm(residual, norm, rows, hidden);
        }
        self.all_reduce_sum(hidden, rows * width)?;
        add_rms_norm(&self.device, residual, norm, rows, hidden)
    }

    fn all_gather(&mut self, part: &Buf, whole: &mut Buf, elements: usize) -> Result<()> {
        let dtype = part.dtype();
        let from = part.address(dtype, elements);
        let to = whole.address(dtype, elements * self.areas.len());
        self.launch(&self.device.kernels.peer.gather, dtype, (from, to, elements))
    }

    fn state(&mut self) -> State {
        self.areas[self.rank].state()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its kernels read the areas. A failure leaves nothing to be done.
        let _ = self.device.synchronize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranks_never_take_two_shots() {
        assert!(!wants_two_shots(2, 1 << 30));
        assert!(!wants_two_shots(4, 100 << 10) && wants_two_shots(4, 1 << 20));
        assert!(wants_two_shots(8, 256 << 10));
    }
}
