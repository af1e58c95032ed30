//! What the bench starts: ranks on random weights, with room for the largest run.

use std::path::PathBuf;

use config::settings::{self, CommKind, Load};
use contract::tensor::DType;
use model::hf::ModelConfig;

use crate::Failure;
use crate::cli::{Backend, Offline};

/// Context of a sequence before its first decode step.
pub const CONTEXT: usize = 128;
/// Positions in a KV block.
pub const BLOCK_TOKENS: usize = 16;

/// What the ranks run on.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// So many ranks of so many threads.
    Cpu {
        /// Ranks.
        ranks: usize,
        /// Threads of one.
        threads: usize,
    },
    /// One rank on the first GPU.
    Gpu {
        /// Memory bandwidth measured before the model was there, in GB/s.
        bandwidth: f64,
    },
}

impl Place {
    /// What `options` ask for.
    pub fn choose(options: &Offline) -> Result<Self, Failure> {
        let gpu = match options.backend {
            Backend::Cpu => false,
            Backend::Cuda => true,
            Backend::Auto => finds_gpu(options.tensor.unwrap_or(1)),
        };
        if gpu {
            // Ranks that cannot be had are refused by the group, which says why.
            let found = kernels::cuda::found();
            let bandwidth = found.map_or(Ok(0.0), |_| kernels::cuda::bandwidth(0))?;
            return Ok(Self::Gpu { bandwidth });
        }
        let ranks = options.tensor.unwrap_or(2);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or_else(|| (cores / ranks).max(1));
        Ok(Self::Cpu { ranks, threads })
    }

    /// Memory bandwidth in GB/s: of a CPU, whose neighbours come and go, measured now.
    pub fn bandwidth(&self) -> Result<f64, Failure> {
        match *self {
            Self::Cpu { ranks, threads } => Ok(kernels::cpu::bandwidth(threads * ranks)?),
            Self::Gpu { bandwidth } => Ok(bandwidth),
        }
    }
}

/// Whether the ranks get a GPU where nobody says what computes; says why if they do not.
fn finds_gpu(ranks: usize) -> bool {
    if ranks > 1 {
        tracing::info!("no GPU is used: {ranks} ranks get GPUs where the backend is \"cuda\"");
        return false;
    }
    kernels::cuda::found().inspect_err(|why| tracing::info!("no GPU is used: {why}")).is_ok()
}

/// Random weights.
pub fn model(dtype: DType) -> settings::Model {
    settings::Model {
        path: PathBuf::new(),
        name: "dummy".to_owned(),
        dtype: Some(dtype),
        load: Load::Dummy { seed: 0 },
        context_max: None,
    }
}

/// The ranks that `place` and `options` ask for.
pub fn parallel(place: Place, options: &Offline) -> settings::Parallel {
    let (backend, ranks, threads) = match place {
        Place::Cpu { ranks, threads } => (settings::Backend::Cpu, ranks, Some(threads)),
        Place::Gpu { .. } => (settings::Backend::Cuda, options.tensor.unwrap_or(1), None),
    };
    settings::Parallel {
        backend,
        tensor: ranks,
        replicas: 1,
        threads,
        comm: CommKind::Auto,
        devices: Vec::new(),
    }
}

/// Bounds with room for the largest run.
pub fn engine(
    config: &ModelConfig,
    options: &Offline,
    ranks: usize,
    dtype: DType,
) -> settings::Engine {
    let sequences = largest_batch(options);
    let decode = sequences * (CONTEXT + options.steps + 2 * BLOCK_TOKENS);
    let prefill = options.prompts * (options.prompt + BLOCK_TOKENS);
    let position_bytes =
        config.shape.layers * config.shape.kv_heads * config.shape.head_dim * 2 * dtype.bytes();
    settings::Engine {
        kv_cache_bytes: Some((decode.max(prefill) * position_bytes * ranks) as u64),
        block_tokens: BLOCK_TOKENS,
        batch_tokens_max: (options.prompts * options.prompt).max(sequences * CONTEXT),
        sequences_max: sequences,
        queue_max: sequences,
        prefix_cache: false,
    }
}

/// Sequences of the largest decode batch.
pub fn largest_batch(options: &Offline) -> usize {
    options.batch.iter().copied().max().unwrap_or(1)
}
