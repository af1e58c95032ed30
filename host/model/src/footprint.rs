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

#[cfg(test)]
mod tests {
    use contract::tensor::DType;

    use super::*;
    use crate::blueprint::Progress;
    use crate::hf::{Architecture, Biases, ModelConfig};
    use crate::room::{Blocks, Neighbours};
    use crate::rope::{Rope, Scaling};
    use crate::weights::Weights;

    /// Llama 3.1 8B.
    fn config() -> ModelConfig {
        ModelConfig {
            shape: BaseShape {
                hidden: 4096,
                intermediate: 14_336,
                layers: 32,
                heads: 32,
                kv_heads: 8,
                head_dim: 128,
                vocab: 128_256,
            },
            architecture: Architecture::Llama,
            dtype: DType::Bf16,
            positions_max: 8192,
            norm_eps: 1e-5,
            rope: Rope { theta: 5e5, scaling: Scaling::None },
            window: None,
            tied: false,
            bias: Biases { qkv: false, output: false, mlp: false },
            head_norm: false,
        }
    }

    fn footprint(ranks: usize) -> Footprint {
        let (config, progress) = (config(), Progress::default());
        let blueprint = Blueprint {
            config: &config,
            weights: &Weights::dummy(0, DType::Bf16),
            dtype: DType::Bf16,
            blocks: Blocks::Fixed(1),
            neighbours: Neighbours::default(),
            block_tokens: 16,
            positions_max: config.positions_max,
            rows_max: 2048,
            slots_max: 64,
            progress: &progress,
        };
        Footprint::of(&blueprint, ranks, 256)
    }

    #[test]
    fn a_rank_takes_its_weights_and_little_besides() {
        let whole = config().weights_bytes(DType::Bf16);
        assert_eq!(whole, 16_060_522_496);
        for ranks in [1, 2, 4, 8] {
            let (found, own) = (footprint(ranks).model, whole / ranks as u64);
            let besides = found - own;
            assert!((100 << 20..500 << 20).contains(&besides), "{ranks} ranks: {besides}");
        }
    }

    #[test]
    fn blocks_and_adapters_are_cut_as_their_layers_are() {
        // 128 KiB a token over all ranks.
        assert_eq!([1, 2, 8].map(|ranks| footprint(ranks).block), [2 << 20, 1 << 20, 256 << 10]);
        // 42 M parameters of lora rank 16; what is not cut is whole on every rank.
        let [one, eight] = [1, 8].map(|ranks| footprint(ranks).adapters / 64);
        assert_eq!(one, 2 * 41_943_040);
        assert!((one / 8..one).contains(&eight), "{eight}");
    }
}
