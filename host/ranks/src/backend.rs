//! Which backend and which collective a group's ranks get.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use collective::comm::Comm;
use collective::solo::Solo;
use collective::threads::ThreadComm;
use config::environment::cache_dir;
use config::settings::{self, CommKind, Parallel};
use contract::counts::CollectiveCounts;
use kernels::cpu::Cpu;
use kernels::cuda::{self, Cuda, Found};
use kernels::ops::Ops;
use model::rank::Rank;

use crate::error::StartError;
use crate::source::Source;
use crate::worker::{Build, Work};

/// Longer than the slowest layer of the largest batch that a CPU is asked to compute.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);

/// What the ranks of a group compute on.
#[derive(Clone, Debug)]
pub enum Backend {
    /// Threads of one CPU rank.
    Cpu {
        /// At least one.
        threads: usize,
    },
    /// The only rank's GPU.
    Cuda(Found),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: 1 } => write!(f, "cpu, 1 thread a rank"),
            Self::Cpu { threads } => write!(f, "cpu, {threads} threads a rank"),
            Self::Cuda(device) => write!(f, "cuda, {} ({})", device.name, device.ordinal),
        }
    }
}

impl Backend {
    /// What `parallel` asks for, or why this machine or build does not have it.
    pub fn choose(parallel: &Parallel) -> Result<Self, StartError> {
        let threads = parallel.threads.unwrap_or_else(|| threads_of(parallel.tensor));
        match parallel.backend {
            settings::Backend::Cuda => gpu(parallel).map(Self::Cuda).map_err(|why| {
                StartError::Backend(format!("backend = \"cuda\": {why}; \"cpu\" works"))
            }),
            settings::Backend::Auto => match gpu(parallel) {
                Ok(device) => Ok(Self::Cuda(device)),
                Err(_) => cpu(parallel, threads),
            },
            settings::Backend::Cpu => cpu(parallel, threads),
        }
    }

    /// How each rank is built, in order.
    pub fn builds(
        self,
        ranks: usize,
        source: Source,
        counts: &Arc<CollectiveCounts>,
    ) -> Vec<Build> {
        let source = Arc::new(source);
        let threads = match self {
            Self::Cuda(device) => {
                let dtype = source.dtype;
                let kernels = cache_dir().map(|caches| caches.join("drystone/kernels"));
                let open = move || Cuda::open(device.ordinal, dtype, kernels.as_deref());
                return vec![build(open, Solo, source)];
            }
            Self::Cpu { threads } => threads,
        };
        let open = move || Cpu::new(threads);
        if ranks == 1 {
            return vec![build(open, Solo, source)];
        }
        let group = ThreadComm::group(ranks, PEER_TIMEOUT, counts).into_iter();
        group.map(|comm| build(open, comm, Arc::clone(&source))).collect()
    }
}

fn build<O, C>(
    open: impl FnOnce() -> kernels::error::Result<O> + Send + 'static,
    comm: C,
    source: Arc<Source>,
) -> Build
where
    O: Ops,
    C: Comm<O::Buf> + 'static,
{
    Box::new(move || {
        let rank = Rank::build(open()?, comm, source.blueprint())?;
        Ok(Box::new(rank) as Box<dyn Work>)
    })
}

fn cpu(parallel: &Parallel, threads: usize) -> Result<Backend, StartError> {
    let why = match parallel.comm {
        CommKind::Peer => "comm = \"peer\" needs CUDA; on the CPU \"threads\" works",
        CommKind::Nccl => "comm = \"nccl\" needs CUDA; on the CPU \"threads\" works",
        CommKind::Auto | CommKind::Threads => return Ok(Backend::Cpu { threads }),
    };
    Err(StartError::Backend(why.to_owned()))
}

/// The device of a group of one rank.
fn gpu(parallel: &Parallel) -> Result<Found, String> {
    let found = cuda::found().map_err(|why| why.to_string())?;
    if parallel.tensor > 1 {
        let ranks = parallel.tensor;
        return Err(format!("tensor = {ranks}: this build runs one rank on GPUs; 1 would do"));
    }
    let wanted = parallel.devices.first().copied().unwrap_or(0);
    let names: Vec<_> = found.iter().map(|d| format!("{} ({})", d.ordinal, d.name)).collect();
    let device = found.into_iter().find(|device| device.ordinal == wanted);
    device.ok_or_else(|| format!("there is no device {wanted}: found {}", names.join(", ")))
}

/// An equal share of the machine's cores, at least one.
fn threads_of(ranks: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / ranks).max(1)
}
