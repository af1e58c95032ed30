//! What a collective asks of a device: the ends that ranks hold on each other's memory.

use crate::error::Result;

use super::memory::Buf;
use super::weight::Weight;

/// How a group's work on a device has gone so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is wrong.
    Well,
    /// The group was given up: what came after is worth nothing.
    Stopped,
    /// A rank waited too long for another one.
    TimedOut,
}

/// What ends the waiting of one rank's device; others call it.
pub trait Stop: Send + Sync + 'static {
    /// Gives the group up: what waits on the device comes back at once.
    fn stop(&self);
}

/// One rank's end of a group whose ranks exchange device memory. All ranks launch the same
/// collectives in the same order; the calls return once that is done, before the device has run.
pub trait Link: Send + 'static {
    /// What others hold of this end.
    type Shared: Stop;

    /// Replaces the first `elements` of `buf` by their sum over all ranks, the same bits on all.
    fn all_reduce_sum(&mut self, buf: &mut Buf, elements: usize) -> Result<()>;

    /// `residual += the sum of all ranks' hidden`, and then `hidden = residual / rms(residual) *
    /// weight`, both `[rows, weight.cols]`: [`Self::all_reduce_sum`] and
    /// [`crate::ops::Ops::add_rms_norm`], and the same bits.
    fn all_reduce_add_rms_norm(
        &mut self,
        residual: &mut Buf,
        norm: (&Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()>;

    /// Fills `whole` with the first `elements` of every rank's `part`, in rank order.
    fn all_gather(&mut self, part: &Buf, whole: &mut Buf, elements: usize) -> Result<()>;

    /// Says that collectives were launched without a call, by a replayed graph.
    fn launched(&mut self) {}

    /// How all that the device has done so far has gone. Asked when results are there.
    fn state(&mut self) -> State;
}
