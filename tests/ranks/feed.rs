//! Pieces of sequences as batches, and the logprobs that a group answers with.

use std::sync::Arc;

use contract::adapter::Slot;
use contract::step::{Answer, Batch, BlockId, Choice, Executor, Query, Segment, Span};

use super::fixture::ENGINE;

/// Consecutive tokens of one sequence, to go into one batch.
#[derive(Clone, Debug)]
pub struct Feed<'a> {
    pub tokens: &'a [u32],
    /// Position of the first token.
    pub start: usize,
    /// The block table.
    pub blocks: Vec<u32>,
    pub slot: Option<Slot>,
}

impl<'a> Feed<'a> {
    /// A whole prompt, in two blocks of its own from `block` on.
    pub fn new(tokens: &'a [u32], block: u32, slot: Option<u32>) -> Self {
        Self { tokens, start: 0, blocks: vec![block, block + 1], slot: slot.map(Slot) }
    }

    /// The part of a prompt from one position up to another.
    pub fn part(&self, start: usize, end: usize) -> Self {
        Self { tokens: &self.tokens[start..end], start, ..self.clone() }
    }
}

/// A batch that asks every row for all logprobs. The feeds of one slot are neighbours.
pub fn batch(feeds: &[Feed<'_>]) -> Batch {
    let mut batch = Batch::default();
    for feed in feeds {
        let (row, block) = (batch.tokens.len() as u32, batch.blocks.len() as u32);
        let positions = feed.start..feed.start + feed.tokens.len();
        batch.tokens.extend(feed.tokens);
        batch.positions.extend(positions.clone().map(|position| position as u32));
        let held = positions.end.div_ceil(ENGINE.block_tokens);
        batch.blocks.extend(feed.blocks[..held].iter().map(|block| BlockId(*block)));
        let rows = row..batch.tokens.len() as u32;
        batch.spans.push(Span { rows: rows.clone(), blocks: block..batch.blocks.len() as u32 });
        extend_segments(&mut batch.segments, Segment { slot: feed.slot, rows });
    }
    let rows = 0..batch.tokens.len() as u32;
    batch.queries = rows.map(everything).collect();
    batch
}

fn extend_segments(segments: &mut Vec<Segment>, next: Segment) {
    match segments.last_mut() {
        Some(last) if last.slot == next.slot => last.rows.end = next.rows.end,
        _ => segments.push(next),
    }
}

/// How likely is every token after this row?
fn everything(row: u32) -> Query {
    Query { row, choice: Choice::Given(0), top_logprobs: Some(1 << 20) }
}

/// Runs one batch; `[feed][position * vocab + token]` logprobs.
pub fn logprobs(group: &mut dyn Executor, feeds: &[Feed<'_>]) -> Vec<Vec<f32>> {
    let output = group.run(Arc::new(batch(feeds))).unwrap();
    let mut rows = output.answers.iter().map(by_token);
    feeds.iter().map(|feed| rows.by_ref().take(feed.tokens.len()).flatten().collect()).collect()
}

fn by_token(answer: &Answer) -> Vec<f32> {
    let mut logprobs = vec![f32::NAN; answer.top.len()];
    answer.top.iter().for_each(|(token, logprob)| logprobs[*token as usize] = *logprob);
    logprobs
}

/// The largest difference; infinite if one is no number.
pub fn distance(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    let lengths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(left), lengths(right));
    let pairs = left.iter().flatten().zip(right.iter().flatten());
    let differences = pairs.map(|(left, right)| (left - right).abs());
    differences.fold(0.0, |worst, next| if next.is_nan() { f32::INFINITY } else { next.max(worst) })
}
