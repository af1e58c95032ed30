//! The seam between engine and device: one batch goes down, one output comes back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::adapter::{Generation, Slot};
use crate::sampling::Sampling;

/// A page of the KV cache: `block_tokens` consecutive positions of one sequence, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Everything the ranks compute in one step. A row is one token of one sequence; a sequence's rows
/// are consecutive, and sequences are sorted so that rows of one slot are too.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Input token of each row; 0 where it is pending.
    pub tokens: Vec<u32>,
    /// Rows whose input tokens are not known yet, in order.
    pub pending: Vec<Pending>,
    /// Position of each row in its sequence; consecutive inside a span.
    pub positions: Vec<u32>,
    /// One a sequence, covering all rows in order.
    pub spans: Vec<Span>,
    /// Block tables of all spans, end to end.
    pub blocks: Vec<BlockId>,
    /// Consecutive rows with one adapter, covering all rows in order.
    pub segments: Vec<Segment>,
    /// Questions asked of the logits, sorted by row.
    pub queries: Vec<Query>,
    /// Prompt and output tokens of the sequences whose sampling reads them, end to end.
    pub history: Vec<u32>,
}

/// A row whose input token the step started just before draws. That step may still be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Row of this batch.
    pub row: u32,
    /// Index into the queries of the batch before; one that [`Query::is_followed`].
    pub query: u32,
}

/// The rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the batch.
    pub rows: Range<u32>,
    /// Its block table in [`Batch::blocks`]; covers every position up to its last row.
    pub blocks: Range<u32>,
}

/// Consecutive rows that use one adapter, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where the adapter's generation lies; `None` is the base.
    pub slot: Option<Slot>,
    /// Rows of the batch.
    pub rows: Range<u32>,
}

/// A question about the token that follows one row.
#[derive(Clone, Debug)]
pub struct Query {
    /// The row whose logits answer.
    pub row: u32,
    /// Which token the answer is about.
    pub choice: Choice,
    /// How many of the likeliest tokens to name; `None` also leaves out the token's own logprob.
    pub top_logprobs: Option<u32>,
}

impl Query {
    /// Whether ranks that run ahead answer it without looking at the logits again: they are gone
    /// once the next step has begun, and only what is drawn can be its input.
    pub fn is_followed(&self) -> bool {
        matches!(self.choice, Choice::Draw(_)) && self.top_logprobs.is_none()
    }
}

/// Which token a query is about.
#[derive(Clone, Debug)]
pub enum Choice {
    /// The one to draw.
    Draw(Draw),
    /// This one: how likely was it? Used for the logprobs of prompts.
    Given(u32),
}

/// One draw. Equal draws over equal logits give equal tokens, alone or in a batch.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Settings of the sequence.
    pub sampling: Arc<Sampling>,
    /// Seed of the sequence.
    pub seed: u64,
    /// Tokens that the sequence has drawn before this one.
    pub index: u32,
    /// Prompt tokens in [`Batch::history`]; empty unless the sampling reads them.
    pub prompt: Range<u32>,
    /// Output tokens in [`Batch::history`]; empty unless the sampling reads them.
    pub output: Range<u32>,
}

/// The answer to one query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The token drawn or given.
    pub token: u32,
    /// Natural logarithm of its probability under the untouched logits; 0 when not asked for.
    pub logprob: f32,
    /// Its place among all tokens by probability, from 1; 0 when not asked for.
    pub place: u32,
    /// The likeliest tokens with their logprobs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What one step brought.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// One a query, in order.
    pub answers: Vec<Answer>,
    /// Time that the ranks spent on the step.
    pub elapsed: Duration,
    /// How long the first rank's device stood idle before it, where that is measured.
    pub idle: Option<Duration>,
}

/// Why the ranks could not do what was asked. After [`Fault::Dead`] nothing will work.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request was wrong or there was no room for it; the ranks are unharmed.
    #[error("{0}")]
    Refused(String),
    /// A rank failed; the replica is lost.
    #[error("rank {rank} failed: {message}")]
    Dead {
        /// Which rank.
        rank: usize,
        /// What it said.
        message: String,
    },
}

/// The ranks of one replica, seen from the engine.
///
/// Commands take effect in the order in which they are given, whatever is still in flight: a step
/// sees the keys and values of all steps started before it, and the slots as they were left.
pub trait Executor: Send {
    /// Whether it pays to start a step while the one before is in flight: the ranks then go from
    /// one to the next without waiting for anybody. Where a step is slow beside what the engine
    /// does between two, a row that turns out to be for nothing would cost more.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Starts a step. Writes the keys and values of every row into the cache. Two steps may be in
    /// flight; a second one only if every query of the first [`Query::is_followed`].
    fn start(&mut self, batch: Arc<Batch>);

    /// Waits for the oldest step in flight. When it was refused, what it would have drawn is
    /// missing to the rows that count on it, and to nobody else.
    fn finish(&mut self) -> Result<StepOutput, Fault>;

    /// Computes one step while none is in flight.
    fn run(&mut self, batch: Arc<Batch>) -> Result<StepOutput, Fault> {
        self.start(batch);
        self.finish()
    }

    /// Puts a generation into a slot on all ranks, or on none. The slot's former content is gone.
    fn load(&mut self, slot: Slot, generation: Arc<Generation>) -> Result<(), Fault>;

    /// Frees the device memory of a slot. No batch may name it until the next load.
    fn unload(&mut self, slot: Slot) -> Result<(), Fault>;
}
