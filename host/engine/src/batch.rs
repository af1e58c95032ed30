//! Turns a plan into the batch that the ranks compute.

use std::ops::Range;
use std::sync::Arc;

use contract::step::{Batch, Choice, Draw, Pending, Query, Segment, Span};

use crate::scheduler::Share;
use crate::sequence::Sequence;

/// Builds one batch after another, in the memory of the last but one.
#[derive(Default)]
pub struct Batches {
    batches: [Arc<Batch>; 2],
}

impl Batches {
    /// The batch of these shares of running sequences, which are sorted by slot. The answers come
    /// share by share, as [`Share`] says.
    pub fn build(
        &mut self,
        shares: &[Share],
        running: &[Sequence],
        block_tokens: usize,
    ) -> Arc<Batch> {
        self.batches.swap(0, 1);
        let own = &mut self.batches[0];
        if Arc::get_mut(own).is_none() {
            *own = Arc::default();
        }
        let batch = Arc::get_mut(own).expect("nobody else has it: this is a bug");
        clear(batch);
        for share in shares {
            add(batch, &running[share.at], share, block_tokens);
        }
        Arc::clone(own)
    }
}

fn clear(batch: &mut Batch) {
    batch.tokens.clear();
    batch.pending.clear();
    batch.positions.clear();
    batch.spans.clear();
    batch.blocks.clear();
    batch.segments.clear();
    batch.queries.clear();
    batch.history.clear();
}

fn add(batch: &mut Batch, sequence: &Sequence, share: &Share, block_tokens: usize) {
    let first_row = batch.tokens.len() as u32;
    let known = share.end().min(sequence.tokens.len());
    batch.tokens.extend_from_slice(&sequence.tokens[share.first..known]);
    if known < share.end() {
        // Only the last of its tokens can be pending.
        let row = batch.tokens.len() as u32;
        batch.pending.push(Pending { row, query: sequence.query as u32 });
        batch.tokens.push(0);
    }
    batch.positions.extend(share.first as u32..share.end() as u32);
    let first_block = batch.blocks.len() as u32;
    batch.blocks.extend_from_slice(&sequence.blocks[..share.end().div_ceil(block_tokens)]);
    let rows = first_row..batch.tokens.len() as u32;
    ask(batch, sequence, share, rows.clone());
    extend_segments(batch, sequence, rows.clone());
    batch.spans.push(Span { rows, blocks: first_block..batch.blocks.len() as u32 });
}

fn extend_segments(batch: &mut Batch, sequence: &Sequence, rows: Range<u32>) {
    let slot = sequence.slot();
    match batch.segments.last_mut() {
        Some(last) if last.slot == slot => last.rows.end = rows.end,
        _ => batch.segments.push(Segment { slot, rows }),
    }
}

fn ask(batch: &mut Batch, sequence: &Sequence, share: &Share, rows: Range<u32>) {
    for position in sequence.scores(share.rows) {
        batch.queries.push(Query {
            row: rows.start + (position - share.first) as u32,
            choice: Choice::Given(sequence.tokens[position + 1]),
            top_logprobs: sequence.request.prompt_logprobs,
        });
    }
    if share.draws {
        let draw = draw(batch, sequence);
        batch.queries.push(Query {
            row: rows.end - 1,
            choice: Choice::Draw(draw),
            top_logprobs: sequence.request.logprobs,
        });
    }
}

fn draw(batch: &mut Batch, sequence: &Sequence) -> Draw {
    let request = &sequence.request;
    let start = batch.history.len() as u32;
    if request.sampling.reads_history() {
        batch.history.extend_from_slice(&sequence.tokens);
    }
    let end = batch.history.len() as u32;
    let output = end.min(start + request.prompt.len() as u32);
    Draw {
        sampling: Arc::clone(&request.sampling),
        seed: request.seed,
        index: sequence.drawn() as u32,
        prompt: start..output,
        output: output..end,
    }
}
