//! How much memory one rank of a model takes, known before any of it is taken.

use contract::base::{BaseShape, Projection};

use crate::blueprint::Blueprint;
use crate::rank::widths;
use crate::vocabulary::VocabularyCut;

/// Adapters are expected to be of this lora rank, on all projections.
const LORA_RANK: usize = 16;

/// Bytes of one rank. All ranks are alike, but for rows of the vocabulary that do not divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights and activations.
    pub model: u64,
    /// One block of the KV cache, in all layers.
    pub block: u64,
    /// Adapters in all slots.
    pub adapters: u64,
}

impl Footprint {
    /// Of one of `ranks`, with so many rows of logits at once.
    pub fn of(blueprint: &Blueprint<'_>, ranks: usize, logit_rows: usize) -> Self {
        let Blueprint { config, block_tokens, slots_max, .. } = *blueprint;
        let (shape, element) = (&config.shape, blueprint.dtype.bytes());
        let model = element * (weights(blueprint, ranks) + activations(blueprint, ranks))
            + size_of::<f32>() * full(blueprint, ranks, logit_rows);
        let adapters = slots_max * element * adapter(shape, ranks);
        Self {
            model: model as u64,
            block: block_bytes(shape, ranks, block_tokens, element),
            adapters: adapters as u64,
        }
    }
}

/// Bytes of one block of `tokens` on one of `ranks`, in all layers.
pub fn block_bytes(shape: &BaseShape, ranks: usize, tokens: usize, element: usize) -> u64 {
    let heads = shape.kv_heads_of(0, ranks).len();
    (tokens * shape.layers * 2 * heads * shape.head_dim * element) as u64
}

/// Elements of the matrices; what norms and biases add is lost beside them.
fn weights(blueprint: &Blueprint<'_>, ranks: usize) -> usize {
    let (config, shape) = (blueprint.config, &blueprint.config.shape);
    let matrix = |projection: &Projection| {
        let shard = shape.shard(*projection, 0, ranks);
        shard.input.len() * shard.output.len()
    };
    let vocabularies = if config.tied { 1 } else { 2 };
    let vocabulary = VocabularyCut::new(shape.vocab, 0, ranks).width * shape.hidden;
    shape.layers * Projection::ALL.iter().map(matrix).sum::<usize>() + vocabularies * vocabulary
}

fn activations(blueprint: &Blueprint<'_>, ranks: usize) -> usize {
    let widths = widths(blueprint.config, 0, ranks);
    blueprint.rows_max * (2 * widths.hidden + widths.fused + widths.inner)
}

/// Elements that are in f32 whatever the model is in: the rope table, logits of this rank and of
/// all ranks.
fn full(blueprint: &Blueprint<'_>, ranks: usize, logit_rows: usize) -> usize {
    let shape = &blueprint.config.shape;
    let width = VocabularyCut::new(shape.vocab, 0, ranks).width;
    let parts = if ranks == 1 { 1 } else { 1 + ranks };
    let logits = logit_rows.min(blueprint.rows_max) * width * parts;
    blueprint.positions_max * shape.head_dim + logits
}

/// Elements of one adapter's local pairs.
fn adapter(shape: &BaseShape, ranks: usize) -> usize {
    let pair = |projection: &Projection| {
        let shard = shape.shard(*projection, 0, ranks);
        LORA_RANK * (shard.input.len() + shard.output.len())
    };
    shape.layers * Projection::ALL.iter().map(pair).sum::<usize>()
}
