//! The contract of a collective: what ranks may ask of each other.

use contract::counts::Purpose;
use kernels::error::Error;
use kernels::ops::Ops;

/// A collective that did not happen. The group is lost: its ranks no longer agree.
#[derive(Debug, thiserror::Error)]
pub enum CommError {
    /// Another rank failed or left.
    #[error("a peer rank left the group")]
    PeerLost,
    /// Nobody answered in time.
    #[error("waited {seconds} s for the peer ranks")]
    Timeout {
        /// How long.
        seconds: u64,
    },
    /// The library below said no.
    #[error("{0}")]
    Library(String),
}

impl CommError {
    /// What a backend said to its part of a collective.
    pub(crate) fn failed(error: Error) -> Self {
        Self::Library(error.to_string())
    }
}

/// One rank's end of a group whose ranks compute by `O`. All ranks call the same methods in the
/// same order.
pub trait Comm<O: Ops>: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn ranks(&self) -> usize;

    /// Replaces the first `elements` of `buf` by their sum over all ranks, taken in rank order.
    fn all_reduce_sum(
        &mut self,
        buf: &mut O::Buf,
        elements: usize,
        why: Purpose,
    ) -> Result<(), CommError>;

    /// `residual += the sum of all ranks' hidden`, and then `hidden = residual / rms(residual) *
    /// weight`, with `eps` added to the mean square. Both are `[rows, width]`, and `residual` is
    /// the same on all ranks, before and after. By default [`Self::all_reduce_sum`] and
    /// [`Ops::add_rms_norm`]; one collective however it is done, and it fails as they do.
    fn all_reduce_add_rms_norm(
        &mut self,
        ops: &mut O,
        residual: &mut O::Buf,
        (weight, eps): (&O::Weight, f32),
        (rows, width): (usize, usize),
        hidden: &mut O::Buf,
        why: Purpose,
    ) -> Result<(), CommError> {
        self.all_reduce_sum(hidden, rows * width, why)?;
        ops.add_rms_norm(residual, weight, eps, rows, hidden).map_err(CommError::failed)
    }

    /// Fills `whole` with the first `elements` of every rank's `part`, in rank order.
    fn all_gather(
        &mut self,
        part: &O::Buf,
        whole: &mut O::Buf,
        elements: usize,
        why: Purpose,
    ) -> Result<(), CommError>;

    /// Returns when all ranks have called it. Work in which a device waits for its peers (a graph
    /// of collectives, replayed) is launched between two meetings: no thread may be held up by a
    /// device that waits for what another thread has yet to launch.
    fn meet(&mut self) -> Result<(), CommError> {
        Ok(())
    }

    /// From `on` until off, collectives are recorded for a graph instead of run: they count for
    /// nothing, and nobody has to meet.
    fn record(&mut self, _on: bool) {}

    /// Counts collectives that a replayed graph does without a call.
    fn count(&mut self, _why: Purpose, _times: u64) {}

    /// Whether all collectives went well whose results are there: to be asked before what was
    /// computed from them is believed. `more`: others are still under way.
    fn settle(&mut self, _more: bool) -> Result<(), CommError> {
        Ok(())
    }
}
