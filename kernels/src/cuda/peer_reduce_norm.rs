//! Launches `peer_reduce_norm.cu`: the sum over peers, the residual and the norm as one kernel.

use crate::error::Result;

use super::device::{Grid, threads_for, to_u32};
use super::memory::Buf;
use super::peer::{CHUNK_BYTES, Peer, PeerParams, THREADS, wants_two_shots};
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerReduceNormParams {
    peer: PeerParams,
    residual: u64,
    weight: u64,
    width: u32,
    eps: f32,
}

const _: () = assert!(size_of::<PeerReduceNormParams>() == 152);

/// Bytes of one rank's rows that one kernel takes at most.
const BYTES_MAX: usize = 1 << 20;

/// Whether one kernel does better than a sum and a norm after it, for `rows` of `row_bytes` on each
/// of `ranks`. It saves a launch and a way of the rows through memory, which is much of what they
/// take in a step of decode. But it has the few blocks of a collective, where a norm by itself has
/// the whole device, and every rank normalises all rows: so not where a sum takes two shots, nor
/// for large sums of two ranks. Those are prefill's, of which norms are a small part. Never for
/// rows that a block cannot post whole.
pub fn pays(ranks: usize, rows: usize, row_bytes: usize) -> bool {
    let bytes = rows * row_bytes;
    row_bytes <= CHUNK_BYTES && bytes <= BYTES_MAX && !wants_two_shots(ranks, bytes)
}

impl Peer {
    /// Where it [`pays`]: [`super::link::Link::all_reduce_add_rms_norm`] as one kernel.
    pub(super) fn reduce_norm(
        &self,
        residual: &mut Buf,
        (weight, eps): (&Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()> {
        let (dtype, elements) = (self.device.dtype, rows * weight.cols);
        let at = hidden.address(dtype, elements);
        let params = PeerReduceNormParams {
            peer: self.params((at, at, elements), false),
            residual: residual.address(dtype, elements),
            weight: weight.floats(),
            width: to_u32(weight.cols),
            eps,
        };
        let grid = Grid::of(rows.min(self.blocks), threads(weight.cols));
        self.device.launch(&self.device.kernels.peer.reduce_norm, grid, &params)
    }
}

/// Threads of a block. Where `add_rms_norm.cu` has more than a block of peers may have, each plays
/// two of them.
fn threads(width: usize) -> u32 {
    match threads_for(width, 2 * THREADS) {
        alone @ ..=THREADS => alone,
        pairs => (pairs / 2).next_multiple_of(32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_takes_one_kernel_and_prefill_two() {
        let row = 8192 * 2;
        assert!(pays(2, 1, row) && pays(2, 64, row) && !pays(2, 2048, row));
        assert!(pays(8, 8, row) && !pays(8, 64, row));
        assert!(!pays(2, 1, CHUNK_BYTES + 4));
    }

    #[test]
    fn a_block_plays_as_many_threads_as_a_norm_by_itself_has() {
        assert_eq!([1, 8, 4096].map(threads), [1, 8, 4096].map(|width| threads_for(width, 1024)));
        assert_eq!([4104, 4352, 5120, 8192, 20_000].map(threads), [288, 288, 320, 512, 512]);
    }
}
