//! The paged KV cache of the fast backend, laid out so that attention is two products with panels.
//!
//! In each block, a head's keys are sixteen positions side by side in panels, a line a column: a
//! product with a query yields the scores of sixteen positions. Its values are the transpose,
//! sixteen columns side by side, a line a position: a product with weights yields sixteen elements
//! of the output. See [`super::format`] for what a panel is.

use std::ops::Range;

use contract::step::BlockId;

use crate::error::Result;
use crate::ops::CacheShape;

use super::format::line_columns;
use super::panels::Panels;
use super::simd::{LANES, Line};

/// Keys and values of one layer.
pub struct Cache {
    pub shape: CacheShape,
    /// `[block][head][position, padded to panels] x [dim]`
    keys: Panels,
    /// `[block][head][dim, padded to panels] x [position]`
    values: Panels,
}

impl Cache {
    /// An empty cache.
    pub fn new(shape: CacheShape) -> Result<Self> {
        let CacheShape { blocks, block_tokens, heads, dim, dtype } = shape;
        let rows = |rows: usize| blocks * heads * rows.next_multiple_of(LANES);
        let keys = Panels::new(rows(block_tokens), dim, dtype)?;
        let values = Panels::new(rows(dim), block_tokens, dtype)?;
        Ok(Self { shape, keys, values })
    }

    /// The panels of one head's keys in one block.
    pub fn keys(&self, block: BlockId, head: usize) -> impl Iterator<Item = &[Line]> {
        self.of(block, head, self.shape.block_tokens).map(|panel| self.keys.panel(panel))
    }

    /// The panels of one head's values in one block.
    pub fn values(&self, block: BlockId, head: usize) -> impl Iterator<Item = &[Line]> {
        self.of(block, head, self.shape.dim).map(|panel| self.values.panel(panel))
    }

    /// Stores one head's key and value at a position of a block. Positions are stored in order.
    pub fn store(&mut self, block: BlockId, head: usize, position: usize, kv: [&[f32]; 2]) {
        let row = self.of(block, head, self.shape.block_tokens).start * LANES + position;
        for (column, key) in kv[0].iter().enumerate() {
            self.keys.put(row, column, *key);
        }
        let row = self.of(block, head, self.shape.dim).start * LANES;
        let line = line_columns(self.shape.dtype);
        for (i, value) in kv[1].iter().enumerate() {
            self.values.put(row + i, position, *value);
            // The line is read whole. What a former sequence left in its other half must not
            // count, and a weight of 0 would not keep a NaN out.
            if position % line + 1 < line {
                self.values.put(row + i, position + 1, 0.0);
            }
        }
    }

    /// Which panels belong to a head in a block when each has `rows`.
    fn of(&self, block: BlockId, head: usize, rows: usize) -> Range<usize> {
        let panels = rows.div_ceil(LANES);
        let first = (block.0 as usize * self.shape.heads + head) * panels;
        first..first + panels
    }
}
