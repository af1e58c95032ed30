//! Joining a group of NCCL's: the call waits for all ranks, so it has a thread of its own.
//!
//! NCCL can do this without blocking, but then every later call may be under way still when it
//! comes back, also while a graph is recorded. One thread at start is simpler. A thread whose call
//! never comes back stays until the process ends, as what it would have served has failed.

use std::ffi::c_char;
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::{result, sys};

use crate::error::Result;

use super::device::Device;
use super::nccl::{Communicator, Place};
use super::status::During;

/// Blocks of threads of a rank that shares its device: NCCL does not know that others must fit too.
const BLOCKS_WHERE_SHARED: i32 = 2;

/// How often somebody who waits looks whether there is a point in it.
const GLANCE: Duration = Duration::from_millis(100);

/// Why nobody waits for a call any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// There was no point in it.
    Stopped,
    /// It took too long.
    Late,
}

/// Joins the group named `id`, once all its ranks have called this; no longer than `timeout`, and
/// only as long as the group is not `stopped`.
pub fn join(
    device: &Arc<Device>,
    (place, id): (Place, sys::ncclUniqueId),
    (timeout, stopped): (Duration, impl Fn() -> bool),
) -> std::result::Result<Result<Communicator>, Unheard> {
    let device = Arc::clone(device);
    let call = move || init(&device, place, id);
    let undo = |joined: Result<Communicator>| {
        let _ = joined.map(Communicator::end);
    };
    bounded((call, undo), timeout, stopped)
}

/// Waits until all ranks have called it.
fn init(
    device: &Device,
    Place { rank, ranks, sharing }: Place,
    id: sys::ncclUniqueId,
) -> Result<Communicator> {
    device.context.bind_to_thread().during("binding its context")?;
    let mut config = Config::new(sharing);
    let mut comm = ptr::null_mut();
    // SAFETY: the pointers are to live values; NCCL reads as much of the configuration as it says
    // it is long.
    let joined = unsafe {
        let config = (&raw mut config).cast();
        result::comm_init_rank_config(&raw mut comm, ranks as i32, id, rank as i32, config)
    };
    joined.during(&format!("joining {ranks} ranks{}", advice(sharing)))?;
    Ok(Communicator(comm))
}

fn advice(sharing: usize) -> &'static str {
    match sharing {
        1 => "",
        _ => ", several on one device (which NCCL 2.30 does with NCCL_MULTI_RANK_GPU_ENABLE=1)",
    }
}

/// What `call` returns on a thread of its own, as long as somebody waits for it; what it returns
/// later is undone.
fn bounded<T: Send + 'static>(
    (call, undo): (impl FnOnce() -> T + Send + 'static, impl FnOnce(T) + Send + 'static),
    timeout: Duration,
    stopped: impl Fn() -> bool,
) -> std::result::Result<T, Unheard> {
    // Without room in the channel a result is either taken or comes back.
    let (outbox, inbox) = sync_channel(0);
    let run = move || {
        if let Err(SendError(late)) = outbox.send(call()) {
            undo(late);
        }
    };
    let spawned = thread::Builder::new().name("nccl-join".to_owned()).spawn(run);
    let deadline = Instant::now() + timeout;
    while spawned.is_ok() && !stopped() {
        match inbox.recv_timeout(GLANCE) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(RecvTimeoutError::Timeout) => return Err(Unheard::Late),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Err(Unheard::Stopped)
}

/// NCCL's configuration as of 2.17; later versions take it too.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
    cluster_size: i32,
    blocks_min: i32,
    blocks_max: i32,
    net_name: *const c_char,
    split_share: i32,
}

impl Config {
    fn new(sharing: usize) -> Self {
        const UNSET: i32 = i32::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 1,
            cluster_size: UNSET,
            blocks_min: UNSET,
            blocks_max: if sharing > 1 { BLOCKS_WHERE_SHARED } else { UNSET },
            net_name: ptr::null(),
            split_share: UNSET,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_call_that_comes_back_is_heard() {
        assert_eq!(bounded((|| 7, drop), LONG, || false), Ok(7));
    }

    /// Waits for a call that comes back only afterwards, and says what was undone.
    fn late(timeout: Duration, stopped: bool) -> (std::result::Result<u32, Unheard>, u32) {
        let (go, gate) = channel::<u32>();
        let (undone, undos) = channel();
        let call = move || gate.recv().unwrap();
        let undo = move |late| undone.send(late).unwrap();
        let heard = bounded((call, undo), timeout, || stopped);
        go.send(7).unwrap();
        (heard, undos.recv_timeout(LONG).unwrap())
    }

    #[test]
    fn nobody_waits_for_ever_and_what_comes_late_is_undone() {
        assert_eq!(late(Duration::ZERO, false), (Err(Unheard::Late), 7));
        assert_eq!(late(LONG, true), (Err(Unheard::Stopped), 7));
    }

    #[test]
    fn a_call_that_panics_is_not_waited_for() {
        let panics = || -> u32 { panic!("on purpose") };
        assert_eq!(bounded((panics, drop), LONG, || false), Err(Unheard::Stopped));
    }
}
