//! Collectives by NCCL, which is looked for when a group wants it.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{ptr, thread};

use contract::tensor::DType;
use cudarc::nccl::{result, sys};

use crate::error::{Error, Result};

use super::Cuda;
use super::add_rms_norm::add_rms_norm;
use super::device::Device;
use super::found::{WhyNot, whole};
use super::link::{Link, State, Stop};
use super::memory::Buf;
use super::nccl_join::{self, Unheard};
use super::status::During;
use super::weight::Weight;

/// Major, minor and patch version of the NCCL found; the oldest that takes our configuration.
const VERSION_MIN: (i32, i32, i32) = (2, 17, 0);

/// How long the last rank of a process waits for NCCL to end.
const ENDING: Duration = Duration::from_secs(10);

/// How often a group that waits is looked at.
const GLANCE: Duration = Duration::from_millis(500);

/// NCCL's version, if it is here.
pub fn nccl_version() -> std::result::Result<(i32, i32, i32), WhyNot> {
    // SAFETY: loading the library has no effect but to load it; it is NVIDIA's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(WhyNot::Library {
            library: "NCCL",
            names: "libnccl.so",
            cure: "install NCCL's development package, or nvidia-nccl-cu13 and a link of that name \
                   to its libnccl.so.2",
        });
    }
    let code = whole(result::get_nccl_version).and_then(|code| code.map_err(|_| String::new()));
    let code = code.unwrap_or_default();
    new_enough(code)
}

/// The version behind NCCL's number for it; 0 if it does not say.
fn new_enough(code: i32) -> std::result::Result<(i32, i32, i32), WhyNot> {
    match (code / 10_000, code / 100 % 100, code % 100) {
        found if found < VERSION_MIN => Err(WhyNot::OldNccl { found, needed: VERSION_MIN }),
        found => Ok(found),
    }
}

/// Names a group, for all ranks that are to join it, in any process.
#[derive(Clone, Copy)]
pub struct NcclName(sys::ncclUniqueId);

impl NcclName {
    /// A new name. Where it comes from, NCCL waits for the ranks.
    pub fn new() -> Result<Self> {
        nccl_version().map_err(|why| Error::Device(why.to_string()))?;
        Ok(Self(result::get_uniqueid().during("naming a group")?))
    }

    /// What to tell another process.
    pub fn bytes(&self) -> [u8; 128] {
        self.0.internal.map(c_char::cast_unsigned)
    }

    /// A name that another process has told.
    pub fn from_bytes(bytes: [u8; 128]) -> Self {
        Self(sys::ncclUniqueId { internal: bytes.map(u8::cast_signed) })
    }
}

/// What the ranks of a group that are in this process know of each other.
#[derive(Default)]
pub struct NcclEnd {
    /// The group's name; one of the ends has it.
    name: Option<NcclName>,
    inner: Mutex<Inner>,
    /// Ranks of this process that have left; the first one's end counts.
    left: AtomicUsize,
}

/// One rank among those of its group.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Which one, and of how many.
    pub rank: usize,
    /// In all processes.
    pub ranks: usize,
    /// How many are on its device, itself included.
    pub sharing: usize,
}

#[derive(Default)]
struct Inner {
    comm: Option<Communicator>,
    state: Option<State>,
    /// NCCL, ending what runs.
    ending: Option<JoinHandle<()>>,
    /// Since when nothing has come back of what was launched.
    waiting: Option<Instant>,
}

/// A handle of NCCL.
pub struct Communicator(pub sys::ncclComm_t);

// SAFETY: NCCL binds a communicator to a device, not to a thread; a mutex keeps calls apart.
unsafe impl Send for Communicator {}

impl NcclEnd {
    /// The end that tells the other ones of this process their group's name.
    pub fn named(name: NcclName) -> Self {
        Self { name: Some(name), ..Self::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the group has gone so far.
    pub fn state(&self) -> State {
        self.inner().state.unwrap_or(State::Well)
    }

    /// Takes the handle of a group that was joined, unless it was given up meanwhile.
    fn take(&self, joined: std::result::Result<Result<Communicator>, State>) -> Result<()> {
        let mut inner = self.inner();
        match joined {
            Ok(joined) => inner.comm = Some(joined?),
            Err(state) => inner.give_up(state),
        }
        match inner.state {
            None => Ok(()),
            Some(state) => {
                inner.give_up(state);
                Err(Error::Device("its group was given up while it was joined".to_owned()))
            }
        }
    }

    /// Looks at a group's work; gives it up where NCCL has failed or nothing came back in time.
    fn watch(&self, timeout: Duration) {
        let mut inner = self.inner();
        let late = inner.waiting.is_some_and(|since| since.elapsed() > timeout);
        let failed = inner.comm.as_ref().is_some_and(Communicator::failed);
        if late || failed {
            inner.give_up(if late { State::TimedOut } else { State::Stopped });
        }
    }
}

impl Inner {
    /// Ends what runs; the first reason is kept. NCCL ends its kernels at once, but one of these
    /// calls, for all communicators of a process, comes back only when no graph of any of its ranks
    /// is left. So the ranks do not wait for it, but the last of them to leave.
    fn give_up(&mut self, state: State) {
        self.state = self.state.or(Some(state));
        let Some(comm) = self.comm.take() else { return };
        // Without a thread it is left as it is: its devices wait until the process ends.
        let ending = thread::Builder::new().name("nccl-end".to_owned()).spawn(|| comm.end());
        self.ending = ending.ok();
    }
}

impl Communicator {
    /// Ends what it runs, and gives it back to NCCL.
    pub fn end(self) {
        // SAFETY: the handle is NCCL's own and goes with this call. A failure leaves nothing to be
        // done.
        let _ = unsafe { result::comm_abort(self.0) };
    }

    fn failed(&self) -> bool {
        let mut error = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the handle is alive and the pointer is to a live value.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.0, &raw mut error) };
        let fine = [sys::ncclResult_t::ncclSuccess, sys::ncclResult_t::ncclInProgress];
        !fine.contains(&asked) || !fine.contains(&error)
    }
}

impl Stop for NcclEnd {
    fn stop(&self) {
        self.inner().give_up(State::Stopped);
    }
}

/// One rank's end of a group that NCCL connects.
pub struct Nccl {
    device: Arc<Device>,
    ranks: usize,
    end: Arc<NcclEnd>,
    /// Of all ranks of this process.
    ends: Vec<Arc<NcclEnd>>,
}

impl Cuda {
    /// Joins a group. `ends` are those of this process; `end` is this rank's own. Waits until all
    /// ranks have called it, or until the group is given up, as it is here after `joining`. Of what
    /// is launched later, something has to come back within `timeout`.
    pub fn join_nccl(
        &self,
        place: Place,
        (end, ends): (&Arc<NcclEnd>, &[Arc<NcclEnd>]),
        (joining, timeout): (Duration, Duration),
    ) -> Result<Nccl> {
        nccl_version().map_err(|why| Error::Device(why.to_string()))?;
        let name = ends.iter().find_map(|end| end.name);
        let NcclName(id) = name.expect("one end has the group's name: this is a bug");
        let stopped = || end.state() != State::Well;
        let joined = nccl_join::join(&self.device, (place, id), (joining, stopped));
        end.take(joined.map_err(|unheard| match unheard {
            Unheard::Late => State::TimedOut,
            Unheard::Stopped => State::Stopped,
        }))?;
        watch(place.rank, end, timeout)?;
        let (device, end) = (Arc::clone(&self.device), Arc::clone(end));
        Ok(Nccl { device, ranks: place.ranks, end, ends: ends.to_vec() })
    }
}

/// A thread that looks after an end as long as it is there.
fn watch(rank: usize, end: &Arc<NcclEnd>, timeout: Duration) -> Result<()> {
    let end: Weak<NcclEnd> = Arc::downgrade(end);
    let look = move || {
        while let Some(end) = end.upgrade() {
            end.watch(timeout);
            drop(end);
            thread::sleep(GLANCE);
        }
    };
    let spawned = thread::Builder::new().name(format!("nccl-{rank}")).spawn(look);
    spawned.map(drop).map_err(|error| Error::Device(format!("no thread to watch NCCL: {error}")))
}

impl Nccl {
    /// Calls NCCL with this rank's handle.
    fn call(
        &self,
        what: &str,
        launch: impl FnOnce(
            sys::ncclComm_t,
        ) -> std::result::Result<result::NcclStatus, result::NcclError>,
    ) -> Result<()> {
        self.device.context.bind_to_thread().during("binding its context")?;
        let mut inner = self.end.inner();
        let given_up = || Error::Device("its group was given up".to_owned());
        let comm = inner.comm.as_ref().ok_or_else(given_up)?.0;
        launch(comm).during(what)?;
        inner.waiting = Some(Instant::now());
        Ok(())
    }

    fn stream(&self) -> sys::cudaStream_t {
        self.device.stream.cu_stream().cast()
    }
}

impl Link for Nccl {
    type Shared = NcclEnd;

    fn all_reduce_sum(&mut self, buf: &mut Buf, elements: usize) -> Result<()> {
        let (at, dtype) = (buf.address(buf.dtype(), elements), element_type(buf.dtype()));
        let (stream, sum) = (self.stream(), sys::ncclRedOp_t::ncclSum);
        self.call("launching a sum", |comm| {
            // SAFETY: the buffer is this long and lives until the stream has passed.
            unsafe { result::all_reduce(at as _, at as _, elements, dtype, sum, comm, stream) }
        })
    }

    fn all_reduce_add_rms_norm(
        &mut self,
        residual: &mut Buf,
        norm: (&Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()> {
        self.all_reduce_sum(hidden, rows * norm.0.cols)?;
        add_rms_norm(&self.device, residual, norm, rows, hidden)
    }

    fn all_gather(&mut self, part: &Buf, whole: &mut Buf, elements: usize) -> Result<()> {
        let dtype = part.dtype();
        let from = part.address(dtype, elements);
        let to = whole.address(dtype, elements * self.ranks);
        let (stream, dtype) = (self.stream(), element_type(dtype));
        self.call("launching a gather", |comm| {
            // SAFETY: the buffers are this long and live until the stream has passed.
            unsafe { result::all_gather(from as _, to as _, elements, dtype, comm, stream) }
        })
    }

    fn launched(&mut self) {
        self.end.inner().waiting = Some(Instant::now());
    }

    fn state(&mut self) -> State {
        let mut inner = self.end.inner();
        inner.waiting = None;
        inner.state.unwrap_or(State::Well)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.end.stop();
        if self.ends[0].left.fetch_add(1, Ordering::AcqRel) + 1 < self.ends.len() {
            return;
        }
        // Every rank dropped its graphs before it came here.
        let deadline = Instant::now() + ENDING;
        let ends = self.ends.iter().filter_map(|end| end.inner().ending.take());
        for ending in ends {
            while !ending.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn element_type(dtype: DType) -> sys::ncclDataType_t {
    match dtype {
        DType::F32 => sys::ncclDataType_t::ncclFloat32,
        DType::F16 => sys::ncclDataType_t::ncclFloat16,
        DType::Bf16 => sys::ncclDataType_t::ncclBfloat16,
    }
}

/// What NCCL says about the last failure in this process; empty if nothing.
pub fn last_error() -> String {
    // SAFETY: the library was found before, and takes no handle here; its text is never freed.
    let text = unsafe {
        let text = sys::ncclGetLastError(ptr::null_mut());
        if text.is_null() { c"" } else { CStr::from_ptr(text) }
    };
    text.to_string_lossy().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_nccl_is_refused_with_both_versions() {
        assert_eq!(new_enough(22_703), Ok((2, 27, 3)));
        let why = new_enough(21_605).unwrap_err().to_string();
        assert_eq!(why, "NCCL 2.16.5 was found: 2.17.0 or newer would do");
    }
}
