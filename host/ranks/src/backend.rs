//! Which backend and which collective a group's ranks get.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use collective::comm::Comm;
use collective::solo::Solo;
use collective::threads::ThreadComm;
use config::settings::{Backend, CommKind, Parallel};
use contract::counts::CollectiveCounts;
use kernels::cpu::Cpu;
use model::rank::Rank;

use crate::error::StartError;
use crate::source::Source;
use crate::worker::{Build, Work};

/// Longer than the slowest layer of the largest batch that a CPU is asked to compute.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);

/// Refuses what this build does not have.
pub fn check(parallel: &Parallel) -> Result<(), StartError> {
    let why = match (parallel.backend, parallel.comm) {
        (Backend::Cuda, _) => "backend = \"cuda\": this build has no CUDA backend; \"cpu\" works",
        (_, CommKind::Peer) => "comm = \"peer\" needs CUDA; on the CPU \"threads\" works",
        (_, CommKind::Nccl) => "comm = \"nccl\" needs CUDA; on the CPU \"threads\" works",
        (Backend::Auto | Backend::Cpu, CommKind::Auto | CommKind::Threads) => return Ok(()),
    };
    Err(StartError::Backend(why.to_owned()))
}

/// How each rank is built, in order.
pub fn builds(parallel: &Parallel, source: Source, counts: &Arc<CollectiveCounts>) -> Vec<Build> {
    let (ranks, source) = (parallel.tensor, Arc::new(source));
    if ranks == 1 {
        return vec![build(Solo, parallel, source)];
    }
    let group = ThreadComm::group(ranks, PEER_TIMEOUT, counts).into_iter();
    group.map(|comm| build(comm, parallel, Arc::clone(&source))).collect()
}

fn build<C: Comm<Vec<f32>> + 'static>(comm: C, parallel: &Parallel, source: Arc<Source>) -> Build {
    let threads = parallel.threads.unwrap_or_else(|| threads_of(parallel.tensor));
    Box::new(move || {
        let rank = Rank::build(Cpu::new(threads)?, comm, source.blueprint())?;
        Ok(Box::new(rank) as Box<dyn Work>)
    })
}

/// An equal share of the machine's cores, at least one.
fn threads_of(ranks: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / ranks).max(1)
}
