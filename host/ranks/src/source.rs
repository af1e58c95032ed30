//! What all ranks of a group are built from, and what there is room for.

use std::sync::Arc;

use config::settings::{Engine, Load};
use contract::tensor::DType;
use model::blueprint::{Blueprint, Progress};
use model::hf::ModelConfig;
use model::weights::Weights;

use crate::error::StartError;
use crate::group::{GroupSpec, Limits};

/// Owned by the rank threads together.
pub struct Source {
    config: ModelConfig,
    weights: Weights,
    /// Element type of weights, KV cache and adapters.
    pub dtype: DType,
    block_tokens: usize,
    slots_max: usize,
    progress: Arc<Progress>,
    /// What there is room for.
    pub limits: Limits,
}

impl Source {
    /// Opens the weights and finds the sizes.
    pub fn open(spec: &GroupSpec<'_>) -> Result<Self, StartError> {
        let GroupSpec { config, model, engine, .. } = *spec;
        let ranks = spec.parallel.tensor;
        if let Some(why) = config.shape.indivisible(ranks) {
            return Err(StartError::Indivisible { ranks, why });
        }
        let dtype = model.dtype.unwrap_or(config.dtype);
        let blocks = blocks(config, engine, ranks, dtype)?;
        let positions_max = model.context_max.unwrap_or(config.positions_max);
        let limits = Limits {
            blocks,
            positions_max: positions_max.min(blocks * engine.block_tokens),
            rows_max: engine.batch_tokens_max,
        };
        let weights = match model.load {
            Load::Weights => Weights::open(&model.path, config)?,
            Load::Dummy { seed } => Weights::dummy(seed, dtype),
        };
        spec.progress.start(config, dtype);
        Ok(Self {
            config: config.clone(),
            weights,
            dtype,
            block_tokens: engine.block_tokens,
            slots_max: spec.slots_max,
            progress: Arc::clone(spec.progress),
            limits,
        })
    }

    /// What a rank is built from.
    pub fn blueprint(&self) -> Blueprint<'_> {
        Blueprint {
            config: &self.config,
            weights: &self.weights,
            dtype: self.dtype,
            blocks: self.limits.blocks,
            block_tokens: self.block_tokens,
            positions_max: self.limits.positions_max,
            rows_max: self.limits.rows_max,
            slots_max: self.slots_max,
            progress: &self.progress,
        }
    }
}

/// Blocks that fit into the KV cache; a block lies in every layer of every rank.
fn blocks(
    config: &ModelConfig,
    engine: &Engine,
    ranks: usize,
    dtype: DType,
) -> Result<usize, StartError> {
    let shape = &config.shape;
    let heads = ranks * shape.kv_heads_of(0, ranks).len();
    let position = shape.layers * 2 * heads * shape.head_dim * dtype.bytes();
    let (block_tokens, bytes) = (engine.block_tokens, engine.kv_cache_bytes);
    let block_bytes = (block_tokens * position) as u64;
    match bytes / block_bytes {
        0 => Err(StartError::Cache { bytes, block_bytes, block_tokens, dtype }),
        blocks => Ok(blocks as usize),
    }
}
