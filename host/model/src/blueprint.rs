//! What the ranks of a group are built from, and how far they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use contract::tensor::DType;

use crate::hf::ModelConfig;
use crate::room::{Blocks, Neighbours};
use crate::weights::Weights;

/// What every rank of a group is built from.
#[derive(Clone, Copy)]
pub struct Blueprint<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Its weights.
    pub weights: &'a Weights,
    /// Element type of weights, KV cache and adapters.
    pub dtype: DType,
    /// Blocks of the KV cache.
    pub blocks: Blocks,
    /// Ranks of other replicas on this rank's device.
    pub neighbours: Neighbours,
    /// Positions in a block.
    pub block_tokens: usize,
    /// Positions of the longest sequence.
    pub positions_max: usize,
    /// Rows of the largest batch.
    pub rows_max: usize,
    /// Adapters on the device at once.
    pub slots_max: usize,
    /// Told about loading.
    pub progress: &'a Progress,
}

/// How far the loading of a model is, over all ranks.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    /// When the first rank began, and how long it was then to the last part in place, in ns.
    begun: Mutex<Option<Instant>>,
    took: AtomicU64,
}

impl Progress {
    /// Bytes of weights in place; 0 before loading starts.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of the whole model; 0 before loading starts.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// From the beginning of the first rank to the last part that is in place.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.took.load(Ordering::Relaxed))
    }

    /// A rank begins.
    pub(crate) fn begin(&self) {
        self.begun().get_or_insert_with(Instant::now);
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        let took = self.begun().map_or(Duration::ZERO, |begun| begun.elapsed());
        self.took.fetch_max(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// An instant is whole even when its writer panicked.
    fn begun(&self) -> MutexGuard<'_, Option<Instant>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts over with what `config` weighs in `dtype`.
    pub fn start(&self, config: &ModelConfig, dtype: DType) {
        self.done.store(0, Ordering::Relaxed);
        self.took.store(0, Ordering::Relaxed);
        *self.begun() = None;
        self.total.store(config.weights_bytes(dtype), Ordering::Relaxed);
    }
}
