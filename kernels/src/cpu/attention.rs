//! Causal attention over the paged cache with a running softmax (arXiv 2205.14135).
//!
//! A tile of queries that share a key head, several heads of one row or several rows, goes over
//! the positions it sees in chunks of a fixed number of blocks that start at position 0, not at the
//! row. A chunk that one query of the tile does not see leaves its sums exactly as they are. So a
//! row has the same bits alone, in a batch, and in a prefill cut anyhow.

use std::ops::Range;

use contract::step::{Batch, BlockId, Span};

use crate::math::{exp, largest, sum};
use crate::ops::Heads;

use super::cache::Cache;
use super::format::{Format, Formatted, Stored};
use super::pack::pack_tile;
use super::simd::{LANES, Lanes, Simd};
use super::tile::{WIDE, product};
use super::workers::Workers;

/// Blocks in a chunk: enough panels of keys for a wide tile.
const CHUNK_BLOCKS: usize = WIDE;

/// [`crate::ops::Ops::kv_store`].
pub fn kv_store(qkv: &[f32], heads: &Heads, batch: &Batch, cache: &mut Cache) {
    let block_tokens = cache.shape.block_tokens;
    let (first, width) = (heads.queries * heads.dim, heads.keys_values * heads.dim);
    for span in &batch.spans {
        for row in span.rows.start as usize..span.rows.end as usize {
            let position = batch.positions[row] as usize;
            let block = blocks(batch, span)[position / block_tokens];
            let (keys, values) = qkv[row * heads.fused() + first..][..2 * width].split_at(width);
            let kv = keys.chunks_exact(heads.dim).zip(values.chunks_exact(heads.dim));
            for (head, (key, value)) in kv.enumerate() {
                cache.store(block, head, position % block_tokens, [key, value]);
            }
        }
    }
}

/// [`crate::ops::Ops::attention`].
pub fn attention(
    workers: &Workers,
    qkv: &[f32],
    heads: &Heads,
    batch: &Batch,
    cache: &Cache,
    out: &mut [f32],
) {
    let mut out: Vec<Option<&mut [f32]>> = out.chunks_exact_mut(heads.dim).map(Some).collect();
    let mut tiles = Vec::new();
    let spans = batch.spans.iter();
    for (span, head) in spans.flat_map(|span| (0..heads.keys_values).map(move |head| (span, head)))
    {
        for asked in queries_of(heads, span, head).chunks(workers.isa.tile_rows()) {
            let query = |&(row, query): &(usize, usize)| Query {
                x: &qkv[row * heads.fused() + query * heads.dim..][..heads.dim],
                seen: visible(heads, batch.positions[row] as usize),
                out: out[row * heads.queries + query].take().expect("a query asked twice: a bug"),
            };
            let queries = asked.iter().map(query).collect();
            tiles.push(Attend { queries, head, heads, blocks: blocks(batch, span), cache });
        }
    }
    let dtype = cache.shape.dtype;
    workers.each(tiles, |work| workers.isa.run(Stored { dtype, work }));
}

/// The rows of a sequence, each with the query heads that read one key head.
fn queries_of(heads: &Heads, span: &Span, head: usize) -> Vec<(usize, usize)> {
    let group = heads.queries / heads.keys_values;
    let queries = move |row| (head * group..(head + 1) * group).map(move |query| (row, query));
    (span.rows.start as usize..span.rows.end as usize).flat_map(queries).collect()
}

/// The block table of a sequence.
fn blocks<'a>(batch: &'a Batch, span: &Span) -> &'a [BlockId] {
    &batch.blocks[span.blocks.start as usize..span.blocks.end as usize]
}

/// The positions that a row at `position` sees.
fn visible(heads: &Heads, position: usize) -> Range<usize> {
    let seen = heads.window.unwrap_or(usize::MAX);
    (position + 1).saturating_sub(seen)..position + 1
}

/// One query head of one row.
struct Query<'a> {
    x: &'a [f32],
    /// Positions.
    seen: Range<usize>,
    out: &'a mut [f32],
}

/// Queries of one sequence that read the same key head, at most as many as a tile has rows.
struct Attend<'a> {
    queries: Vec<Query<'a>>,
    head: usize,
    heads: &'a Heads,
    blocks: &'a [BlockId],
    cache: &'a Cache,
}

/// A softmax on its way: the largest score so far, and the sum of weights relative to it.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    total: f32,
}

impl Formatted for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, F: Format>(self, simd: S) {
        let block_tokens = self.cache.shape.block_tokens;
        let scaled = self.scaled_queries();
        let rows: Vec<&[f32]> = scaled.chunks_exact(self.heads.dim).collect();
        let mut x = Vec::new();
        pack_tile::<F>(&rows, &mut x);

        let mut softmax = vec![Softmax { largest: f32::NEG_INFINITY, total: 0.0 }; rows.len()];
        let width = self.heads.dim.div_ceil(LANES);
        let mut sums = vec![[0.0; LANES]; rows.len() * width];
        let end = self.queries.iter().map(|query| query.seen.end).max().unwrap_or(0);
        let start = self.queries.iter().map(|query| query.seen.start).min().unwrap_or(0);
        let first = start / (CHUNK_BLOCKS * block_tokens) * CHUNK_BLOCKS;
        let mut scores = Vec::new();
        for first in (first..end.div_ceil(block_tokens)).step_by(CHUNK_BLOCKS) {
            let last = (first + CHUNK_BLOCKS).min(end.div_ceil(block_tokens));
            self.score::<S, F>(simd, &x, first..last, &mut scores);
            let row = scores.len() / rows.len();
            for (m, scores) in scores.chunks_exact_mut(row).enumerate() {
                let sums = sums[m * width..][..width].as_flattened_mut();
                self.weigh(m, first, scores.as_flattened_mut(), &mut softmax[m], sums);
            }
            self.add_values::<S, F>(simd, first..last, end, &scores, &mut sums);
        }
        for ((query, softmax), sums) in
            self.queries.into_iter().zip(softmax).zip(sums.chunks(width))
        {
            for (out, sum) in query.out.iter_mut().zip(sums.as_flattened()) {
                *out = sum / softmax.total;
            }
        }
    }
}

impl Attend<'_> {
    fn scaled_queries(&self) -> Vec<f32> {
        let elements = self.queries.iter().flat_map(|query| query.x);
        elements.map(|x| x * self.heads.scale).collect()
    }

    /// Scores `[query][block][position, padded to panels]` of some blocks.
    #[inline(always)]
    fn score<S: Simd, F: Format>(
        &self,
        simd: S,
        x: &[f32],
        blocks: Range<usize>,
        scores: &mut Vec<Lanes>,
    ) {
        let blocks = self.blocks[blocks].iter();
        let panels: Vec<_> = blocks.flat_map(|block| self.cache.keys(*block, self.head)).collect();
        scores.clear();
        scores.resize(self.queries.len() * panels.len(), [0.0; LANES]);
        product::<S, F>(simd, x, self.queries.len(), &panels, scores);
    }

    /// Turns the scores of query `m` into weights, and brings its sums to the new scale.
    #[inline(always)]
    fn weigh(
        &self,
        m: usize,
        first_block: usize,
        scores: &mut [f32],
        softmax: &mut Softmax,
        sums: &mut [f32],
    ) {
        let block_tokens = self.cache.shape.block_tokens;
        let seen = &self.queries[m].seen;
        // The columns of each block that the query sees; other columns hold anything.
        let blocks = scores.chunks_exact_mut(block_tokens.next_multiple_of(LANES));
        for (block, scores) in (first_block..).zip(blocks) {
            let column =
                |position: usize| position.saturating_sub(block * block_tokens).min(block_tokens);
            let seen = column(seen.start)..column(seen.end);
            scores[..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..].fill(f32::NEG_INFINITY);
        }
        let largest = softmax.largest.max(largest(scores));
        if largest == f32::NEG_INFINITY {
            scores.fill(0.0);
            return;
        }
        for score in scores.iter_mut() {
            *score = exp(*score - largest);
        }
        let scale = exp(softmax.largest - largest);
        sums.iter_mut().for_each(|sum| *sum *= scale);
        softmax.total = softmax.total * scale + sum(scores);
        softmax.largest = largest;
    }

    /// Adds the weighted values of some blocks, up to position `end`.
    #[inline(always)]
    fn add_values<S: Simd, F: Format>(
        &self,
        simd: S,
        blocks: Range<usize>,
        end: usize,
        weights: &[Lanes],
        sums: &mut [Lanes],
    ) {
        let block_tokens = self.cache.shape.block_tokens;
        let row = weights.len() / self.queries.len() * LANES;
        let mut x = Vec::new();
        for (i, block) in blocks.enumerate() {
            let positions = (end - block * block_tokens).min(block_tokens);
            let columns = i * block_tokens.next_multiple_of(LANES);
            let rows = weights.as_flattened().chunks_exact(row);
            let rows: Vec<&[f32]> = rows.map(|row| &row[columns..][..positions]).collect();
            x.clear();
            pack_tile::<F>(&rows, &mut x);
            let panels: Vec<_> = self.cache.values(self.blocks[block], self.head).collect();
            product::<S, F>(simd, &x, rows.len(), &panels, sums);
        }
    }
}
