//! The dimensions of a base model and how each linear layer is cut across ranks.
//!
//! Cutting is decided in one place, [`BaseShape::shard`], for base weights and adapter factors
//! alike: an adapter needs no collective of its own exactly because both are cut the same way.
//! The scheme is Megatron-LM's (arXiv 1909.08053, section 3).

use std::ops::Range;

/// A linear layer of a decoder block that an adapter may target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// The gate of the feed-forward block.
    Gate,
    /// The other input half of the feed-forward block.
    Up,
    /// Feed-forward output.
    Down,
}

/// How a linear layer is cut across ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parallel {
    /// Along its output: the input is whole on every rank, the output stays cut.
    Column,
    /// Along its input: every rank holds a partial sum of the whole output.
    Row,
}

impl Projection {
    /// All seven, in the order a block computes them.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Index into arrays that hold one entry per projection.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// How Megatron cuts this layer.
    pub const fn parallel(self) -> Parallel {
        match self {
            Self::O | Self::Down => Parallel::Row,
            _ => Parallel::Column,
        }
    }

    /// Path inside a decoder block, as Hugging Face checkpoints name it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Full dotted path of this projection in decoder block `layer`.
    pub fn module(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.path())
    }
}

/// The dimensions of a decoder-only base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseShape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Number of decoder blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab: usize,
}

/// The part of one linear layer that one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Input features (columns of the `[out, in]` weight).
    pub input: Range<usize>,
    /// Output features (rows of the weight).
    pub output: Range<usize>,
}

impl BaseShape {
    /// `(input, output)` features of a projection, uncut.
    pub fn features(&self, projection: Projection) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Q => (self.hidden, q),
            Projection::K | Projection::V => (self.hidden, kv),
            Projection::O => (q, self.hidden),
            Projection::Gate | Projection::Up => (self.hidden, self.intermediate),
            Projection::Down => (self.intermediate, self.hidden),
        }
    }

    /// Says why the model cannot be cut across `ranks`, if it cannot.
    pub fn indivisible(&self, ranks: usize) -> Option<String> {
        let kv_fits = self.kv_heads.is_multiple_of(ranks) || ranks.is_multiple_of(self.kv_heads);
        let fits = [
            (self.heads.is_multiple_of(ranks), "attention heads", self.heads),
            (self.intermediate.is_multiple_of(ranks), "intermediate features", self.intermediate),
            (kv_fits, "key/value heads", self.kv_heads),
        ];
        let (_, what, size) = fits.into_iter().find(|(fits, ..)| !fits)?;
        Some(format!("{size} {what} cannot be cut across {ranks} ranks"))
    }

    /// Key/value heads that `rank` of `ranks` holds. With more ranks than heads, a head is held by
    /// several ranks, each beside the query heads that read it.
    pub fn kv_heads_of(&self, rank: usize, ranks: usize) -> Range<usize> {
        let held = self.kv_heads.div_ceil(ranks);
        let first = rank * self.kv_heads / ranks;
        first..first + held
    }

    /// The part of `projection` that `rank` of `ranks` holds.
    pub fn shard(&self, projection: Projection, rank: usize, ranks: usize) -> Shard {
        let (input, output) = self.features(projection);
        let cut = |size: usize| rank * size / ranks..(rank + 1) * size / ranks;
        match projection {
            Projection::K | Projection::V => {
                let heads = self.kv_heads_of(rank, ranks);
                let output = heads.start * self.head_dim..heads.end * self.head_dim;
                Shard { input: 0..input, output }
            }
            _ => match projection.parallel() {
                Parallel::Column => Shard { input: 0..input, output: cut(output) },
                Parallel::Row => Shard { input: cut(input), output: 0..output },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: BaseShape = BaseShape {
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 8,
        kv_heads: 2,
        head_dim: 8,
        vocab: 101,
    };

    #[test]
    fn kv_heads_follow_the_query_heads_that_read_them() {
        for ranks in [1, 2, 4, 8] {
            for rank in 0..ranks {
                let queries = SHAPE.shard(Projection::Q, rank, ranks).output;
                let group = SHAPE.heads / SHAPE.kv_heads * SHAPE.head_dim;
                let read = queries.start / group..(queries.end - 1) / group + 1;
                assert_eq!(SHAPE.kv_heads_of(rank, ranks), read, "rank {rank} of {ranks}");
            }
        }
    }

    #[test]
    fn shards_of_a_cut_layer_cover_it_without_overlap() {
        for projection in [Projection::Q, Projection::Up, Projection::O, Projection::Down] {
            let (input, output) = SHAPE.features(projection);
            let cut = |rank| match projection.parallel() {
                Parallel::Column => SHAPE.shard(projection, rank, 8).output,
                Parallel::Row => SHAPE.shard(projection, rank, 8).input,
            };
            let whole = if projection.parallel() == Parallel::Row { input } else { output };
            assert_eq!((cut(0).start, cut(7).end), (0, whole));
            assert!((1..8).all(|rank| cut(rank - 1).end == cut(rank).start));
        }
    }

    #[test]
    fn an_indivisible_model_is_named() {
        assert_eq!(SHAPE.indivisible(8), None);
        let why = SHAPE.indivisible(16).expect("8 heads across 16 ranks");
        assert_eq!(why, "8 attention heads cannot be cut across 16 ranks");
    }
}
