//! What all ranks of a group are built from, and what there is room for.

use std::sync::{Arc, OnceLock};

use config::settings::Load;
use contract::tensor::DType;
use model::blueprint::{Blueprint, Progress};
use model::hf::ModelConfig;
use model::room::{Blocks, Neighbours};
use model::weights::Weights;

use crate::backend::Backend;
use crate::cache::Cache;
use crate::error::StartError;
use crate::group::{GroupSpec, Limits};

/// Owned by the rank threads together.
pub struct Source {
    config: ModelConfig,
    weights: Weights,
    /// Element type of weights, KV cache and adapters.
    pub dtype: DType,
    blocks: Blocks,
    /// Blocks that the ranks have found room for.
    settled: OnceLock<usize>,
    block_tokens: usize,
    positions_max: usize,
    rows_max: usize,
    slots_max: usize,
    progress: Arc<Progress>,
}

impl Source {
    /// Opens the weights and finds the sizes.
    pub fn open(spec: &GroupSpec<'_>, backend: &Backend) -> Result<Self, StartError> {
        let GroupSpec { config, model, engine, .. } = *spec;
        let ranks = spec.parallel.tensor;
        if let Some(why) = config.shape.indivisible(ranks) {
            return Err(StartError::Indivisible { ranks, why });
        }
        let dtype = model.dtype.unwrap_or(config.dtype);
        let blocks = Cache::of(spec).blocks(backend)?;
        let positions_max = model.context_max.unwrap_or(config.positions_max);
        let weights = match model.load {
            Load::Weights => Weights::open(&model.path, config)?,
            Load::Dummy { seed } => Weights::dummy(seed, dtype),
        };
        spec.progress.start(config, dtype);
        Ok(Self {
            config: config.clone(),
            weights,
            dtype,
            blocks,
            settled: OnceLock::new(),
            block_tokens: engine.block_tokens,
            positions_max: match blocks {
                Blocks::Fixed(blocks) => positions_max.min(blocks * engine.block_tokens),
                Blocks::Fitting { .. } => positions_max,
            },
            rows_max: engine.batch_tokens_max,
            slots_max: spec.slots_max,
            progress: Arc::clone(spec.progress),
        })
    }

    /// What a rank is built from.
    pub fn blueprint(&self, neighbours: Neighbours) -> Blueprint<'_> {
        Blueprint {
            config: &self.config,
            weights: &self.weights,
            dtype: self.dtype,
            blocks: self.blocks,
            neighbours,
            block_tokens: self.block_tokens,
            positions_max: self.positions_max,
            rows_max: self.rows_max,
            slots_max: self.slots_max,
            progress: &self.progress,
        }
    }

    /// Takes down what a rank has found room for; all find the same.
    pub fn settle(&self, blocks: usize) {
        let settled = *self.settled.get_or_init(|| blocks);
        assert_eq!(settled, blocks, "ranks disagree on the size of the cache: this is a bug");
    }

    /// What there is room for; of blocks that is known when the ranks are built.
    pub fn limits(&self) -> Limits {
        let blocks = self.settled.get().copied().unwrap_or_default();
        Limits {
            blocks,
            positions_max: self.positions_max.min(blocks * self.block_tokens),
            rows_max: self.rows_max,
        }
    }
}
