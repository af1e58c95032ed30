//! What each rank's local pair takes from the factors on disk.
//!
//! `I` and `O` are the inputs and outputs that the rank holds of the base layer, one of them all;
//! `K` are the lora ranks that a block-diagonal factor joins to them, all without one.
//!
//! | sharding              | A takes                 | B takes               | exchange |
//! |-----------------------|-------------------------|-----------------------|----------|
//! | like the base         | rows `K`, columns `I`   | rows `O`, columns `K` | none     |
//! | fully, column-parallel| its part of the rows    | rows `O`              | gather   |
//! | fully, row-parallel   | columns `I`             | its part of the rows  | reduce   |
//!
//! The first line holds for plain and block-diagonal factors, for any number of ranks and blocks:
//! with as many ranks as blocks `K` is the rank's own block, with fewer ranks several, and with
//! more the one that it shares. That line is why adapters need no collective of their own.

use std::ops::Range;

use contract::adapter::{Exchange, PairShape};
use contract::base::{BaseShape, Parallel, Shard};

use crate::module::Module;
use crate::weights::Tensor;

/// What adapters are cut for.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Dimensions of the base.
    pub base: BaseShape,
    /// Ranks of a replica.
    pub ranks: usize,
    /// How plain adapters are cut.
    pub plain_sharding: PlainSharding,
}

/// How the modules of plain adapters are cut. Block-diagonal ones are always cut like the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainSharding {
    /// Like the base: the factor that the base's cut leaves whole is held by every rank.
    Replicated,
    /// S-LoRA's scheme (arXiv 2311.03285, section 6): both factors are cut, at the price of a
    /// collective between shrink and expand.
    FullySharded,
}

/// A factor on disk: `rows x columns`, with blocks on the diagonal and zero elsewhere. The blocks
/// are stored stacked on rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// Rows.
    pub rows: usize,
    /// Columns, zeros included.
    pub columns: usize,
    /// Diagonal blocks; 1 is dense.
    pub blocks: usize,
}

/// What one rank's factor takes from a factor on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// Rows; those beyond the factor's are zero.
    pub rows: Range<usize>,
    /// Columns, counted with zeros; those beyond the factor's are zero.
    pub columns: Range<usize>,
    /// Whole blocks that stay compact. 1 takes a dense rectangle, zeros between blocks included.
    pub blocks: usize,
}

/// What one rank takes of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// From A.
    pub a: Take,
    /// From B.
    pub b: Take,
    /// The pair that comes of it.
    pub shape: PairShape,
}

impl Cut {
    /// Applies the table above.
    pub fn new(module: &Module, rank: usize, group: &Group) -> Self {
        let Module { a, b, .. } = module;
        let shard = group.base.shard(module.site.projection, rank, group.ranks);
        let fully = group.plain_sharding == PlainSharding::FullySharded && group.ranks > 1;
        match module.site.projection.parallel() {
            Parallel::Column if fully && module.is_plain() => {
                Self::gathered(a, shard, rank, group.ranks)
            }
            Parallel::Row if fully && module.is_plain() => {
                Self::reduced(b, shard, rank, group.ranks)
            }
            _ => Self::like_base(a, b, shard),
        }
    }

    fn like_base(a: &Factor, b: &Factor, shard: Shard) -> Self {
        let (reading, read) = (a.rows_at(&shard.input), b.columns_at(&shard.output));
        let lora_ranks = reading.start.max(read.start)..reading.end.min(read.end);
        let output = 0..shard.output.len();
        let a = a.take(lora_ranks.clone(), shard.input);
        let b = b.take(shard.output, lora_ranks);
        Self::of(a, b, output, Exchange::None)
    }

    /// Parts of equal size, so that the all-gather is even; the last ones may be zero at the end.
    fn gathered(a: &Factor, shard: Shard, rank: usize, ranks: usize) -> Self {
        let part = a.rows.div_ceil(ranks);
        let output = 0..shard.output.len();
        let a = Take { rows: rank * part..(rank + 1) * part, columns: shard.input, blocks: 1 };
        let b = Take { rows: shard.output, columns: 0..ranks * part, blocks: 1 };
        Self::of(a, b, output, Exchange::Gather)
    }

    fn reduced(b: &Factor, shard: Shard, rank: usize, ranks: usize) -> Self {
        let output = rank * b.rows / ranks..(rank + 1) * b.rows / ranks;
        let a = Take { rows: 0..b.columns, columns: shard.input, blocks: 1 };
        let b = Take { rows: output.clone(), columns: 0..b.columns, blocks: 1 };
        Self::of(a, b, output, Exchange::Reduce)
    }

    fn of(a: Take, b: Take, output: Range<usize>, exchange: Exchange) -> Self {
        let shape = PairShape {
            input: a.columns.len(),
            output,
            shrink_rank: a.rows.len(),
            expand_rank: b.columns.len(),
            a_blocks: a.blocks,
            b_blocks: b.blocks,
            exchange,
        };
        Self { a, b, shape }
    }
}

impl Factor {
    /// A factor without blocks.
    pub fn dense(rows: usize, columns: usize) -> Self {
        Self { rows, columns, blocks: 1 }
    }

    /// The shape of the tensor that stores it.
    pub fn stored(&self) -> [usize; 2] {
        [self.rows, self.columns / self.blocks]
    }

    /// Whether a tensor has the shape to be this factor.
    pub fn fits(&self, tensor: &Tensor) -> bool {
        tensor.shape == self.stored()
    }

    /// Rows of the blocks that have any of these columns.
    fn rows_at(&self, columns: &Range<usize>) -> Range<usize> {
        across(columns, self.columns / self.blocks, self.rows / self.blocks)
    }

    /// Columns of the blocks that have any of these rows.
    fn columns_at(&self, rows: &Range<usize>) -> Range<usize> {
        across(rows, self.rows / self.blocks, self.columns / self.blocks)
    }

    /// Takes a rectangle, compact if it consists of whole blocks.
    fn take(&self, rows: Range<usize>, columns: Range<usize>) -> Take {
        let whole = |range: &Range<usize>, block: usize| {
            let aligned = range.start.is_multiple_of(block) && range.end.is_multiple_of(block);
            aligned.then(|| range.start / block..range.end / block)
        };
        let by_rows = whole(&rows, self.rows / self.blocks);
        let by_columns = whole(&columns, self.columns / self.blocks);
        let blocks = match by_rows {
            Some(blocks) if by_rows == by_columns => blocks.len(),
            _ => 1,
        };
        Take { rows, columns, blocks }
    }
}

impl Take {
    /// Copies what is taken out of a factor's stored values.
    pub fn out_of(&self, factor: &Factor, values: &[f32]) -> Vec<f32> {
        let width = self.columns.len() / self.blocks;
        let mut taken = vec![0.0; self.rows.len() * width];
        let [rows, stored] = factor.stored();
        let lines = values.chunks_exact(stored).take(rows).skip(self.rows.start);
        for ((row, line), local) in
            (self.rows.start..).zip(lines).zip(taken.chunks_exact_mut(width))
        {
            // A stored line covers `block`; a local one begins at `origin` and covers `width`.
            let first = row / (factor.rows / factor.blocks) * stored;
            let block = first..first + stored;
            let origin = if self.blocks > 1 { block.start } else { self.columns.start };
            let shared = block.start.max(origin)..block.end.min(origin + width);
            if !shared.is_empty() {
                local[shared.start - origin..shared.end - origin]
                    .copy_from_slice(&line[shared.start - first..shared.end - first]);
            }
        }
        taken
    }
}

/// Maps a range over the edge of `from`-sized blocks to the edge of `to`-sized ones.
fn across(range: &Range<usize>, from: usize, to: usize) -> Range<usize> {
    range.start / from * to..range.end.div_ceil(from) * to
}
