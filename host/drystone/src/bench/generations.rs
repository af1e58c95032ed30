//! Adapters of random numbers on all seven projections, cut as loaded ones are.

use contract::adapter::{
    Exchange, Generation, GenerationId, Kind, LayerPairs, LocalPair, PairShape,
};
use contract::base::{BaseShape, Projection};

/// A kind of adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Plain LoRA, replicated.
    Plain,
    /// BD-LoRA.
    BlockDiagonal,
}

impl Name {
    /// For tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::BlockDiagonal => "bd",
        }
    }
}

/// What a random adapter looks like.
#[derive(Clone, Copy)]
pub struct Random<'a> {
    /// Dimensions of the base.
    pub base: &'a BaseShape,
    /// Ranks of the group.
    pub ranks: usize,
    /// Plain or block-diagonal.
    pub kind: Name,
    /// Blocks of a block-diagonal one: as many as the ranks that the whole model is cut for.
    pub blocks: usize,
    /// Full lora rank.
    pub lora_rank: usize,
}

impl Random<'_> {
    /// The adapter with this number; different numbers have different weights.
    pub fn generation(&self, number: u32) -> Generation {
        let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
        let mut layer = |rank| -> LayerPairs {
            Projection::ALL.map(|projection| Some(self.pair(projection, rank, &mut state)))
        };
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        Generation {
            id: GenerationId(id),
            name: format!("random-{number}"),
            kind: match self.kind {
                Name::Plain => Kind::Plain,
                Name::BlockDiagonal => Kind::BlockDiagonal { blocks: self.blocks },
            },
            lora_rank: self.lora_rank,
            ranks: (0..self.ranks)
                .map(|rank| (0..self.base.layers).map(|_| layer(rank)).collect())
                .collect(),
        }
    }

    /// Elements of one adapter over all ranks.
    pub fn elements(&self) -> usize {
        let pair = |rank| {
            let shapes = Projection::ALL.map(|projection| self.shape(projection, rank));
            shapes.iter().map(|shape| shape.a_len() + shape.b_len()).sum::<usize>()
        };
        self.base.layers * (0..self.ranks).map(pair).sum::<usize>()
    }

    fn pair(&self, projection: Projection, rank: usize, state: &mut u32) -> LocalPair {
        let shape = self.shape(projection, rank);
        let mut numbers = |len, scale: f32| (0..len).map(|_| next(state) * scale).collect();
        LocalPair { a: numbers(shape.a_len(), 0.05), b: numbers(shape.b_len(), 0.01), shape }
    }

    /// As in ARCHITECTURE.md, "BD-LoRA in one page", for as many blocks as ranks.
    fn shape(&self, projection: Projection, rank: usize) -> PairShape {
        let shard = self.base.shard(projection, rank, self.ranks);
        let local = match self.kind {
            Name::Plain => self.lora_rank,
            Name::BlockDiagonal => self.lora_rank / self.blocks,
        };
        PairShape {
            input: shard.input.len(),
            output: 0..shard.output.len(),
            shrink_rank: local,
            expand_rank: local,
            a_blocks: 1,
            b_blocks: 1,
            exchange: Exchange::None,
        }
    }
}

/// The next of a row of numbers in -1..1 (xorshift, Marsaglia 2003).
fn next(state: &mut u32) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state as f32 / u32::MAX as f32 * 2.0 - 1.0
}
