//! The group whose ranks are threads of one process and whose collectives run on devices.
//!
//! Launching and running are apart: a collective is launched by every rank's thread and then waits
//! on the device for its twins. Two meetings of the threads, before and after, see to it that no
//! thread is held up in a call of the driver (loading a kernel, say, which waits for the device)
//! while a twin that the device waits for has yet to be launched. They also notice at once that a
//! rank is gone; what already waits on a device is told by its stop word.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contract::counts::{CollectiveCounts, Purpose};
use kernels::cuda::{Buf, Cuda, Link, Nccl, NcclEnd, NcclName, Peer, PeerArea, Place, State, Stop};
use kernels::ops::Ops;

use crate::barrier::Barrier;
use crate::comm::{Comm, CommError};

/// How long a group waits for one of its ranks.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A rank's thread, for another one to come to the same point.
    pub threads: Duration,
    /// A rank's device, for another one to come to the same collective.
    pub devices: Duration,
    /// A rank that joins, for the ranks of other processes to join too.
    pub joining: Duration,
}

/// A place in a group, for the thread that becomes its rank. Dropping it, also by a panic, gives up
/// the group.
pub struct Seat<S: Stop> {
    /// Among the ranks of this process.
    index: usize,
    table: Arc<Table<S>>,
}

/// What the ranks of a group that are in this process share.
struct Table<S> {
    barrier: Barrier,
    patience: Patience,
    counts: Arc<CollectiveCounts>,
    /// What each rank shares of its end.
    ends: Mutex<Vec<Option<Arc<S>>>>,
    /// Those of this process, and how many there are in all.
    own: Range<usize>,
    ranks: usize,
}

impl<S> Table<S> {
    /// An end is whole even when its owner panicked.
    fn ends(&self) -> MutexGuard<'_, Vec<Option<Arc<S>>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Stop> Table<S> {
    fn give_up(&self) {
        self.barrier.break_up();
        self.ends().iter().flatten().for_each(|end| end.stop());
    }
}

impl<S: Stop> Seat<S> {
    /// All places of a new group, in order.
    pub fn group(ranks: usize, patience: Patience, counts: &Arc<CollectiveCounts>) -> Vec<Self> {
        Self::part(0..ranks, ranks, patience, counts)
    }

    /// The places of a new group of `ranks` that are in this process.
    pub fn part(
        own: Range<usize>,
        ranks: usize,
        patience: Patience,
        counts: &Arc<CollectiveCounts>,
    ) -> Vec<Self> {
        let table = Arc::new(Table {
            barrier: Barrier::new(own.len(), patience.threads),
            patience,
            counts: Arc::clone(counts),
            ends: Mutex::new(own.clone().map(|_| None).collect()),
            own: own.clone(),
            ranks,
        });
        (0..own.len()).map(|index| Self { index, table: Arc::clone(&table) }).collect()
    }

    /// What ends the group from outside: this process's ranks get [`CommError::PeerLost`].
    pub fn give_up(&self) -> impl Fn() + Send + Sync + 'static {
        let table = Arc::downgrade(&self.table);
        move || {
            if let Some(table) = table.upgrade() {
                table.give_up();
            }
        }
    }

    /// Among all ranks of the group.
    fn rank(&self) -> usize {
        self.table.own.start + self.index
    }

    /// Shows all ranks what this one shares, and returns what they do, in order.
    fn exchange(&self, shared: Arc<S>) -> Result<Vec<Arc<S>>, CommError> {
        self.table.ends()[self.index] = Some(shared);
        self.table.barrier.wait()?;
        Ok(self.table.ends().iter().flatten().map(Arc::clone).collect())
    }
}

impl<S: Stop> Drop for Seat<S> {
    fn drop(&mut self) {
        self.table.give_up();
    }
}

/// One rank of a group of devices.
pub struct DeviceComm<L: Link> {
    /// Dropped first: peers are told before this rank waits for its own device.
    seat: Seat<L::Shared>,
    link: L,
    recording: bool,
}

impl DeviceComm<Peer> {
    /// Joins a group of peers, with a device that it shares with `sharing` ranks.
    pub fn join_peers(
        seat: Seat<PeerArea>,
        cuda: &Cuda,
        sharing: usize,
    ) -> Result<DeviceComm<Peer>, CommError> {
        let area = cuda.peer_area(sharing).map_err(CommError::failed)?;
        let areas = seat.exchange(Arc::new(area))?;
        let link = cuda.join_peers(seat.index, areas, seat.table.patience.devices);
        let link = link.map_err(CommError::failed)?;
        // Nobody launches anything before everybody's memory is open.
        seat.table.barrier.wait()?;
        Ok(DeviceComm { seat, link, recording: false })
    }
}

impl DeviceComm<Nccl> {
    /// Joins a group that NCCL connects, with a device that it shares with `sharing` ranks. Where
    /// the group is in this process alone, it needs no `name` from outside.
    pub fn join_nccl(
        seat: Seat<NcclEnd>,
        cuda: &Cuda,
        (sharing, name): (usize, Option<NcclName>),
    ) -> Result<DeviceComm<Nccl>, CommError> {
        let end = match (seat.index, name) {
            (0, Some(name)) => NcclEnd::named(name),
            (0, None) => NcclEnd::named(NcclName::new().map_err(CommError::failed)?),
            _ => NcclEnd::default(),
        };
        let end = Arc::new(end);
        let ends = seat.exchange(Arc::clone(&end))?;
        let place = Place { rank: seat.rank(), ranks: seat.table.ranks, sharing };
        let Patience { joining, devices, .. } = seat.table.patience;
        let link = cuda.join_nccl(place, (&end, &ends), (joining, devices));
        let link = link.map_err(|error| match end.state() {
            State::Well => CommError::failed(error),
            State::Stopped => CommError::PeerLost,
            State::TimedOut => CommError::Timeout { seconds: joining.as_secs() },
        })?;
        Ok(DeviceComm { seat, link, recording: false })
    }
}

impl<L: Link> DeviceComm<L> {
    /// Launches a collective between two meetings, unless it is recorded.
    fn launch(
        &mut self,
        why: Purpose,
        work: impl FnOnce(&mut L) -> kernels::error::Result<()>,
    ) -> Result<(), CommError> {
        if self.recording {
            return work(&mut self.link).map_err(CommError::failed);
        }
        self.meet()?;
        work(&mut self.link).map_err(CommError::failed)?;
        self.count(why, 1);
        self.meet()
    }
}

impl<L: Link> Comm<Cuda> for DeviceComm<L> {
    fn rank(&self) -> usize {
        self.seat.rank()
    }

    fn ranks(&self) -> usize {
        self.seat.table.ranks
    }

    fn all_reduce_sum(
        &mut self,
        buf: &mut Buf,
        elements: usize,
        why: Purpose,
    ) -> Result<(), CommError> {
        self.launch(why, |link| link.all_reduce_sum(buf, elements))
    }

    fn all_reduce_add_rms_norm(
        &mut self,
        _ops: &mut Cuda,
        residual: &mut Buf,
        norm: (&<Cuda as Ops>::Weight, f32),
        (rows, _): (usize, usize),
        hidden: &mut Buf,
        why: Purpose,
    ) -> Result<(), CommError> {
        self.launch(why, |link| link.all_reduce_add_rms_norm(residual, norm, rows, hidden))
    }

    fn all_gather(
        &mut self,
        part: &Buf,
        whole: &mut Buf,
        elements: usize,
        why: Purpose,
    ) -> Result<(), CommError> {
        self.launch(why, |link| link.all_gather(part, whole, elements))
    }

    fn meet(&mut self) -> Result<(), CommError> {
        self.seat.table.barrier.wait()
    }

    fn record(&mut self, on: bool) {
        self.recording = on;
    }

    fn count(&mut self, why: Purpose, times: u64) {
        self.link.launched();
        if self.seat.index == 0 {
            self.seat.table.counts.add_many(why, times);
        }
    }

    fn settle(&mut self, more: bool) -> Result<(), CommError> {
        let state = self.link.state();
        if more {
            // What is under way has as long as if it had been launched now.
            self.link.launched();
        }
        match state {
            State::Well => Ok(()),
            State::Stopped => Err(CommError::PeerLost),
            State::TimedOut => {
                Err(CommError::Timeout { seconds: self.seat.table.patience.devices.as_secs() })
            }
        }
    }
}

#[cfg(test)]
mod tests;
