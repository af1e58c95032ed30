//! Which backend and which collective a group's ranks get.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use collective::comm::{Comm, CommError};
use collective::device::{DeviceComm, Patience, Seat};
use collective::solo::Solo;
use collective::threads::ThreadComm;
use config::environment::cache_dir;
use config::settings::{self, CommKind, Parallel};
use contract::counts::CollectiveCounts;
use kernels::cpu::Cpu;
use kernels::cuda::{Cuda, NcclName};
use kernels::error::Error as Kernel;
use kernels::ops::Ops;
use model::error::Error;
use model::rank::Rank;
use model::room::Neighbours;

use crate::error::StartError;
use crate::gpus::{Gpus, Lack, Link};
use crate::group::GroupSpec;
use crate::source::Source;
use crate::worker::{Build, Work};

/// Longer than the slowest layer of the largest batch that a CPU is asked to compute.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);

/// Threads wait for each other to launch, and while one of them opens its device; devices for
/// what others compute before the same collective; processes while others compile their kernels.
const PATIENCE: Patience = Patience {
    threads: PEER_TIMEOUT,
    devices: Duration::from_secs(60),
    joining: Duration::from_secs(300),
};

/// What the ranks of a group compute on.
#[derive(Clone, Debug)]
pub enum Backend {
    /// Threads of one CPU rank.
    Cpu {
        /// At least one.
        threads: usize,
    },
    /// A GPU for each rank.
    Cuda(Gpus),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: 1 } => write!(f, "cpu, 1 thread a rank"),
            Self::Cpu { threads } => write!(f, "cpu, {threads} threads a rank"),
            Self::Cuda(gpus) => {
                let names =
                    gpus.devices.iter().map(|gpu| format!("{} ({})", gpu.name, gpu.ordinal));
                write!(f, "cuda, {}", names.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl Backend {
    /// What a group asks of this process, or why this machine or build does not have it.
    pub fn choose(spec: &GroupSpec<'_>) -> Result<Self, StartError> {
        let parallel = spec.parallel;
        let ranks = parallel.tensor * parallel.replicas;
        let threads = parallel.threads.unwrap_or_else(|| threads_of(ranks));
        let gpus = || Gpus::choose(spec).map(Self::Cuda);
        let refused = |why: String| Err(StartError::Backend(why));
        match (parallel.backend, spec.launch) {
            (settings::Backend::Cuda, None) => {
                gpus().or_else(|why| refused(format!("backend = \"cuda\": {why}; \"cpu\" works")))
            }
            (settings::Backend::Cuda | settings::Backend::Auto, Some(_)) => {
                gpus().or_else(|why| refused(format!("backend = \"cuda\": {why}")))
            }
            (settings::Backend::Auto, None) => gpus().or_else(|why| {
                // All replicas have the same reason.
                if spec.replica == 0 {
                    tell(&why);
                }
                cpu(parallel, threads)
            }),
            (settings::Backend::Cpu, None) => cpu(parallel, threads),
            (settings::Backend::Cpu, Some(launch)) => refused(format!(
                "backend = \"cpu\" on {} processes: its ranks are threads of one process; \"cuda\" \
                 would do",
                launch.processes
            )),
        }
    }

    /// Whether it pays to start a step before the one ahead of it is done.
    pub fn runs_ahead(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// The ranks of this process. `name` is what several processes call their group.
    pub fn crew(
        self,
        ranks: usize,
        source: &Arc<Source>,
        counts: &Arc<CollectiveCounts>,
        name: Option<NcclName>,
    ) -> Crew {
        match self {
            Self::Cuda(gpus) => cuda_crew(&gpus, source, counts, name),
            Self::Cpu { threads } => Crew::free(cpu_builds(threads, ranks, source, counts)),
        }
    }
}

/// The ranks of this process.
pub struct Crew {
    /// How each is built, in order.
    pub builds: Vec<Build>,
    /// Ends the group from outside.
    pub give_up: GiveUp,
}

/// Frees ranks that wait for others; says nothing to ranks that are gone.
pub type GiveUp = Arc<dyn Fn() + Send + Sync>;

impl Crew {
    /// Ranks that wait for nobody outside this process.
    fn free(builds: Vec<Build>) -> Self {
        Self { builds, give_up: Arc::new(|| ()) }
    }
}

/// Says why a backend left to us is not CUDA: aloud where there are GPUs that stay idle.
fn tell(why: &Lack) {
    match why.is_plain() {
        true => tracing::info!("no GPU is used: {why}"),
        false => tracing::warn!(
            "no GPU is used: {why}; backend = \"cuda\" would refuse to start, \"cpu\" would not ask"
        ),
    }
}

fn cpu_builds(
    threads: usize,
    ranks: usize,
    source: &Arc<Source>,
    counts: &Arc<CollectiveCounts>,
) -> Vec<Build> {
    let (open, alone) = (move || Cpu::new(threads), Neighbours::default());
    if ranks == 1 {
        return vec![build(open, |_| Ok(Solo), (source, alone))];
    }
    let group = ThreadComm::group(ranks, PEER_TIMEOUT, counts).into_iter();
    group.map(|comm| build(open, |_| Ok(comm), (source, alone))).collect()
}

fn cuda_crew(
    gpus: &Gpus,
    source: &Arc<Source>,
    counts: &Arc<CollectiveCounts>,
    name: Option<NcclName>,
) -> Crew {
    let dtype = source.dtype;
    let open = |index: usize| {
        let ordinal = gpus.devices[index].ordinal;
        let kernels = cache_dir().map(|caches| caches.join("drystone/kernels"));
        move || Cuda::open(ordinal, dtype, kernels.as_deref())
    };
    let source = |index: usize| (source, gpus.neighbours(index));
    match gpus.link {
        Link::Solo => Crew::free(vec![build(open(0), |_| Ok(Solo), source(0))]),
        Link::Peer => {
            let seats = Seat::group(gpus.ranks, PATIENCE, counts);
            let join = |(index, seat)| {
                let sharing = gpus.sharing(index);
                let join = move |cuda: &Cuda| DeviceComm::join_peers(seat, cuda, sharing);
                build(open(index), join, source(index))
            };
            Crew::free(seats.into_iter().enumerate().map(join).collect())
        }
        Link::Nccl => {
            let seats = Seat::part(gpus.own.clone(), gpus.ranks, PATIENCE, counts);
            let give_up = seats[0].give_up();
            let join = |(index, seat)| {
                let sharing = gpus.sharing(index);
                let join = move |cuda: &Cuda| DeviceComm::join_nccl(seat, cuda, (sharing, name));
                build(open(index), join, source(index))
            };
            let builds = seats.into_iter().enumerate().map(join).collect();
            Crew { builds, give_up: Arc::new(give_up) }
        }
    }
}

/// A rank that opens its backend, joins its group and then loads its part of the model.
fn build<O, C>(
    open: impl FnOnce() -> kernels::error::Result<O> + Send + 'static,
    join: impl FnOnce(&O) -> Result<C, CommError> + Send + 'static,
    (source, neighbours): (&Arc<Source>, Neighbours),
) -> Build
where
    O: Ops,
    C: Comm<O> + 'static,
{
    let source = Arc::clone(source);
    Box::new(move || {
        let ops = open()?;
        let comm = join(&ops)?;
        let rank = Rank::build(ops, comm, source.blueprint(neighbours)).map_err(short)?;
        source.settle(rank.blocks());
        Ok(Box::new(rank) as Box<dyn Work>)
    })
}

/// Memory that ran out although there was room by our reckoning: others take it too.
fn short(error: Error) -> Error {
    match error {
        Error::Kernel(memory @ Kernel::Memory { .. }) => Error::NoRoom(format!(
            "{memory} beside what is taken already, by us or by others; less of it, or a smaller \
             engine.kv_cache_gib, would do"
        )),
        other => other,
    }
}

fn cpu(parallel: &Parallel, threads: usize) -> Result<Backend, StartError> {
    let why = match parallel.comm {
        CommKind::Peer => "comm = \"peer\" needs CUDA; on the CPU \"threads\" works",
        CommKind::Nccl => "comm = \"nccl\" needs CUDA; on the CPU \"threads\" works",
        CommKind::Auto | CommKind::Threads => return Ok(Backend::Cpu { threads }),
    };
    Err(StartError::Backend(why.to_owned()))
}

/// An equal share of the machine's cores, at least one.
fn threads_of(ranks: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / ranks).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_runs_out_at_start_is_told_with_what_would_do() {
        let short = short(Error::Kernel(Kernel::Memory { what: "the KV cache", bytes: 7 }));
        let why = short.to_string();
        assert!(why.starts_with("out of memory: the KV cache needs 7 bytes"), "{why}");
        assert!(why.contains("engine.kv_cache_gib"), "{why}");
    }
}
