//! The paged cache and attention over it.

use std::sync::Arc;

use contract::step::{Batch, BlockId, Span};
use contract::tensor::DType;
use kernels::ops::{CacheShape, Heads, Ops};

use crate::bench::{Bench, Case, Random, poisoned, upload, weight};

/// Query heads, key heads, width, window; positions in a block.
const SHAPES: [(usize, usize, usize, Option<usize>, usize); 9] = [
    (1, 1, 2, None, 1),
    (8, 2, 8, None, 4),
    (4, 4, 64, None, 16),
    (16, 2, 64, None, 16),
    (6, 3, 80, Some(9), 16),
    (11, 1, 20, Some(40), 5),
    (9, 3, 128, None, 40),
    (2, 1, 96, Some(33), 16),
    (3, 1, 256, Some(70), 8),
];

/// Lengths of the sequences of a batch. Every position is a row of some batch.
const LENGTHS: [usize; 6] = [1, 2, 16, 17, 70, 131];

/// Longer than a backend may care to attend to in one go.
const LONG: usize = 2300;

/// Several tiles of rows, the last ones begun, ended or full.
const TILED: [usize; 3] = [384, 300, 257];

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    for (queries, keys_values, dim, window, block_tokens) in SHAPES {
        let heads = Heads { queries, keys_values, dim, scale: 0.4, window };
        let cuts = [vec![1], vec![3, 20], vec![17, 1, 64]];
        compare(bench, (heads, block_tokens), &LENGTHS, &cuts);
    }
    let heads = Heads { queries: 1, keys_values: 1, dim: 64, scale: 0.4, window: None };
    compare(bench, (heads, 16), &[LONG], &[vec![LONG - 3, 1]]);
    let heads = Heads { queries: 4, keys_values: 2, dim: 128, scale: 0.4, window: None };
    compare(bench, (heads, 16), &TILED, &[vec![129, 160, 200]]);
}

/// Sequences of some lengths: at once, cut into steps, and each alone.
fn compare<O: Ops>(
    bench: &mut Bench<O>,
    (heads, block_tokens): (Heads, usize),
    lengths: &[usize],
    cuts: &[Vec<usize>],
) {
    let random = &mut bench.random;
    let values = lengths.iter().map(|length| random.values(length * heads.fused()));
    let sequences: Vec<_> = values.collect();
    let same = bench.promise.same_attention;
    for dtype in bench.dtypes() {
        let name = format!("attention {heads:?}, blocks of {block_tokens}, {dtype}");
        let (cut, order) = (vec![usize::MAX], bench.random.next());
        let whole =
            Attention { heads, block_tokens, dtype, sequences: sequences.clone(), cut, order };
        let together = bench.agree(&name, dtype, &whole);
        for cut in cuts {
            let cut = Attention { cut: cut.clone(), order: bench.random.next(), ..whole.clone() };
            let got = cut.run(&mut bench.backend);
            bench.alike(&name, dtype, same, (&got, &together));
        }
        let mut start = 0;
        for sequence in &sequences {
            let alone = Attention { sequences: vec![sequence.clone()], ..whole.clone() };
            let alone = alone.run(&mut bench.backend);
            bench.alike(&name, dtype, same, (&alone, &together[start..][..alone.len()]));
            start += alone.len();
        }
    }
}

/// Sequences given as fused rows, fed in steps: each takes `cut[step]` rows of every sequence that
/// has some left, the last entry of `cut` again and again.
#[derive(Clone)]
struct Attention {
    heads: Heads,
    block_tokens: usize,
    dtype: DType,
    sequences: Vec<Vec<f32>>,
    cut: Vec<usize>,
    /// Seed of the blocks' order.
    order: u64,
}

impl Case for Attention {
    /// The outputs of all rows of the first sequence, then of the second, and so on.
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let tables = self.block_tables();
        let mut cache = self.stale_cache(ops, tables.iter().map(Vec::len).sum());
        let width = self.heads.queries * self.heads.dim;
        let mut outs = vec![Vec::new(); self.sequences.len()];
        let mut cuts = self.cut.iter().chain(std::iter::repeat(&self.cut[self.cut.len() - 1]));
        loop {
            let cut = *cuts.next().expect("endless");
            let (batch, qkv) = self.batch(&tables, |i| outs[i].len() / width, cut);
            if batch.spans.is_empty() {
                return outs.concat();
            }
            let out = self.step(ops, &Arc::new(batch.clone()), &qkv, &mut cache);
            for span in &batch.spans {
                let i = tables
                    .iter()
                    .position(|table| table[0] == batch.blocks[span.blocks.start as usize]);
                let rows = span.rows.start as usize * width..span.rows.end as usize * width;
                outs[i.expect("its table")].extend(&out[rows]);
            }
        }
    }
}

impl Attention {
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().map(|sequence| sequence.len() / self.heads.fused())
    }

    /// Blocks in random order, as many as each sequence needs.
    fn block_tables(&self) -> Vec<Vec<BlockId>> {
        let needs: Vec<usize> =
            self.lengths().map(|length| length.div_ceil(self.block_tokens)).collect();
        let mut blocks = Random(self.order).shuffled(needs.iter().sum()).into_iter().map(BlockId);
        needs.iter().map(|need| blocks.by_ref().take(*need).collect()).collect()
    }

    /// A cache in which a former sequence left nothing but NaN.
    fn stale_cache<O: Ops>(&self, ops: &mut O, blocks: usize) -> O::Cache {
        let Self { heads, block_tokens, dtype, .. } = self;
        let mut cache = ops
            .cache(CacheShape {
                blocks,
                block_tokens: *block_tokens,
                heads: heads.keys_values,
                dim: heads.dim,
                dtype: *dtype,
            })
            .expect("a cache");
        let rows = blocks * block_tokens;
        let batch = Arc::new(Batch {
            tokens: vec![0; rows],
            positions: (0..rows as u32).collect(),
            spans: vec![Span { rows: 0..rows as u32, blocks: 0..blocks as u32 }],
            blocks: (0..blocks as u32).map(BlockId).collect(),
            ..Batch::default()
        });
        let step = ops.step(&batch, 0).expect("a step");
        let mut qkv = poisoned(ops, rows * heads.fused());
        let table = self.table(ops, rows);
        let stored = ops.rope_kv_store(&mut qkv, heads, &table, &step, &mut cache);
        stored.expect("rope_kv_store");
        cache
    }

    /// Turns every pair of a head by quarters, more at another position: no backend rounds them.
    fn table<O: Ops>(&self, ops: &mut O, positions: usize) -> O::Weight {
        let half = self.heads.dim / 2;
        let sine = |quarters: usize| [0.0, 1.0, 0.0, -1.0][quarters % 4];
        let row = |position: usize| {
            let cosines = (0..half).map(move |pair| sine(position + pair + 1));
            cosines.chain((0..half).map(move |pair| sine(position + pair)))
        };
        let values: Vec<f32> = (0..positions).flat_map(row).collect();
        weight(ops, &values, self.heads.dim, DType::F32)
    }

    /// The next `cut` rows of every sequence that has some left after `done` of them.
    fn batch(
        &self,
        tables: &[Vec<BlockId>],
        done: impl Fn(usize) -> usize,
        cut: usize,
    ) -> (Batch, Vec<f32>) {
        let (mut batch, mut qkv) = (Batch::default(), Vec::new());
        for (i, length) in self.lengths().enumerate() {
            let rows = done(i)..done(i).saturating_add(cut).min(length);
            if rows.is_empty() {
                continue;
            }
            let (row, block) = (batch.tokens.len() as u32, batch.blocks.len() as u32);
            batch.tokens.extend(rows.clone().map(|_| 0));
            batch.positions.extend(rows.clone().map(|row| row as u32));
            batch.blocks.extend(&tables[i][..rows.end.div_ceil(self.block_tokens)]);
            batch.spans.push(Span {
                rows: row..batch.tokens.len() as u32,
                blocks: block..batch.blocks.len() as u32,
            });
            let fused = self.heads.fused();
            qkv.extend(&self.sequences[i][rows.start * fused..rows.end * fused]);
        }
        (batch, qkv)
    }

    fn step<O: Ops>(
        &self,
        ops: &mut O,
        batch: &Arc<Batch>,
        qkv: &[f32],
        cache: &mut O::Cache,
    ) -> Vec<f32> {
        let step = ops.step(batch, 0).expect("a step");
        let mut qkv = upload(ops, qkv);
        let positions = batch.positions.iter().max().map_or(0, |last| *last as usize + 1);
        let table = self.table(ops, positions);
        let elements = batch.tokens.len() * self.heads.queries * self.heads.dim;
        let mut out = poisoned(ops, elements);
        let done = ops.rope_attention(&mut qkv, &self.heads, &table, &step, cache, &mut out);
        done.expect("rope_attention");
        ops.read(&out, elements).expect("the output")
    }
}
