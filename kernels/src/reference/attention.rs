//! The paged KV cache, and causal attention over it.

use std::ops::Range;

use contract::step::{Batch, Span};

use crate::element;
use crate::ops::{CacheShape, Heads};

use super::linear::dot;

/// Keys and values `[blocks][block_tokens][heads][dim]` of one layer.
pub struct Cache {
    shape: CacheShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    pub fn new(shape: CacheShape) -> Self {
        let elements = shape.blocks * shape.block_tokens * shape.heads * shape.dim;
        Self { shape, keys: vec![0.0; elements], values: vec![0.0; elements] }
    }

    /// Where all heads of `position` of `span` lie.
    fn at(&self, batch: &Batch, span: &Span, position: usize) -> Range<usize> {
        let CacheShape { block_tokens, heads, dim, .. } = self.shape;
        let block = batch.blocks[span.blocks.start as usize + position / block_tokens].0 as usize;
        let width = heads * dim;
        let start = (block * block_tokens + position % block_tokens) * width;
        start..start + width
    }
}

pub fn kv_store(qkv: &[f32], heads: &Heads, batch: &Batch, cache: &mut Cache) {
    let (queries, width) = (heads.queries * heads.dim, heads.keys_values * heads.dim);
    let dtype = cache.shape.dtype;
    for span in &batch.spans {
        for row in span.rows.start as usize..span.rows.end as usize {
            let at = cache.at(batch, span, batch.positions[row] as usize);
            let row = &qkv[row * heads.fused()..][..heads.fused()];
            for i in 0..width {
                cache.keys[at.start + i] = element::round(dtype, row[queries + i]);
                cache.values[at.start + i] = element::round(dtype, row[queries + width + i]);
            }
        }
    }
}

pub fn attention(qkv: &[f32], heads: &Heads, batch: &Batch, cache: &Cache, out: &mut [f32]) {
    let group = heads.queries / heads.keys_values;
    for span in &batch.spans {
        for row in span.rows.start as usize..span.rows.end as usize {
            let seen = visible(heads, batch.positions[row] as usize);
            for head in 0..heads.queries {
                let query = &qkv[row * heads.fused() + head * heads.dim..][..heads.dim];
                let out = &mut out[(row * heads.queries + head) * heads.dim..][..heads.dim];
                let at = |position| {
                    let start = cache.at(batch, span, position).start;
                    let start = start + head / group * heads.dim;
                    start..start + heads.dim
                };
                attend(query, heads.scale, seen.clone().map(at), cache, out);
            }
        }
    }
}

/// The positions that a row at `position` sees.
fn visible(heads: &Heads, position: usize) -> Range<usize> {
    let seen = heads.window.unwrap_or(usize::MAX);
    (position + 1).saturating_sub(seen)..position + 1
}

/// `out = sum of softmax(scale * query . key) * value` over the cached heads at `places`.
fn attend(
    query: &[f32],
    scale: f32,
    places: impl Iterator<Item = Range<usize>> + Clone,
    cache: &Cache,
    out: &mut [f32],
) {
    let score = |place| scale * dot(query, &cache.keys[place]);
    let scores: Vec<f32> = places.clone().map(score).collect();
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f32 = weights.iter().sum();
    out.fill(0.0);
    for (weight, place) in weights.iter().zip(places) {
        for (out, value) in out.iter_mut().zip(&cache.values[place]) {
            *out += weight / total * value;
        }
    }
}
