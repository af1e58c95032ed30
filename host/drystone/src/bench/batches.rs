//! The batches that the bench runs: a prompt, or one token of each of several sequences.

use std::ops::Range;
use std::sync::Arc;

use contract::adapter::Slot;
use contract::sampling::Sampling;
use contract::step::{Batch, BlockId, Choice, Draw, Pending, Query, Segment, Span};

/// Tokens that every shape's vocabulary has.
const TOKENS: usize = 16_000;

/// Sequences with equal lengths, each with blocks of its own.
pub struct Sequences {
    /// How many.
    pub count: usize,
    /// Positions in a KV block.
    pub block_tokens: usize,
    /// Blocks that every sequence owns.
    pub blocks: usize,
    /// Slots that they share evenly, neighbours one slot; 0 for none.
    pub adapters: usize,
    /// Whether the input of each is the token that the step before drew for it.
    pub follow: bool,
}

impl Sequences {
    /// One step over the same `positions` of every sequence, drawing one token each, greedily.
    pub fn batch(&self, positions: Range<usize>) -> Arc<Batch> {
        let sampling = Arc::new(Sampling { temperature: 0.0, ..Sampling::default() });
        let mut batch = Batch::default();
        for sequence in 0..self.count {
            let rows = self.push_rows(&mut batch, sequence, &positions);
            let draw = Draw {
                sampling: Arc::clone(&sampling),
                seed: 0,
                index: 0,
                prompt: 0..0,
                output: 0..0,
            };
            let choice = Choice::Draw(draw);
            batch.queries.push(Query { row: rows.end - 1, choice, top_logprobs: None });
            if self.follow {
                batch.tokens[rows.start as usize] = 0;
                batch.pending.push(Pending { row: rows.start, query: sequence as u32 });
            }
        }
        Arc::new(batch)
    }

    fn push_rows(
        &self,
        batch: &mut Batch,
        sequence: usize,
        positions: &Range<usize>,
    ) -> Range<u32> {
        let (first, table) = (batch.tokens.len() as u32, batch.blocks.len() as u32);
        let rows = first..first + positions.len() as u32;
        batch.tokens.extend(positions.clone().map(|at| ((at * 7919 + sequence) % TOKENS) as u32));
        batch.positions.extend(positions.clone().map(|at| at as u32));
        let used = positions.end.div_ceil(self.block_tokens);
        let owned = sequence * self.blocks..sequence * self.blocks + used;
        batch.blocks.extend(owned.map(|block| BlockId(block as u32)));
        batch.spans.push(Span { rows: rows.clone(), blocks: table..batch.blocks.len() as u32 });
        let slot = (self.adapters > 0)
            .then(|| Slot((sequence * self.adapters.min(self.count) / self.count) as u32));
        match batch.segments.last_mut() {
            Some(segment) if segment.slot == slot => segment.rows.end = rows.end,
            _ => batch.segments.push(Segment { slot, rows: rows.clone() }),
        }
        rows
    }
}
