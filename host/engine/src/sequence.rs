//! One sequence as the scheduler sees it: tokens, blocks and a slot.

use std::ops::Range;
use std::sync::Arc;

use adapters::catalogue::Entry;
use adapters::residency::Lease;
use contract::adapter::Slot;
use contract::request::Request;
use contract::step::BlockId;

use crate::prefix::Digest;

/// Names a sequence while it is open; used again after.
pub type Key = usize;

/// A sequence, waiting or running.
#[derive(Debug)]
pub struct Sequence {
    /// Finds its stream.
    pub key: Key,
    /// As it was submitted.
    pub request: Request,
    /// The adapter that was asked for.
    pub adapter: Option<Arc<Entry>>,
    /// Binds it to one generation, from first admission to its end.
    pub lease: Option<Lease>,
    /// Prompt and output, as far as it is known.
    pub tokens: Vec<u32>,
    /// Tokens that steps in flight draw for it.
    pub pending: usize,
    /// The query of the last step started that draws for it.
    pub query: usize,
    /// Positions whose keys and values are in the cache, once the steps in flight are done; at most
    /// as many as tokens, pending ones included.
    pub computed: usize,
    /// Steps in flight that have rows of it: until there are none, it keeps all that it holds.
    pub in_flight: usize,
    /// Ended while in flight: it is not planned any more.
    pub over: bool,
    /// Its block table.
    pub blocks: Vec<BlockId>,
    /// Names of its first full blocks, as far as they were needed.
    pub chain: Vec<Digest>,
    /// Prompt tokens after the first whose logprobs are known.
    pub scored: usize,
    /// Whether all slots were leased when it last asked.
    pub waits_for_slot: bool,
    /// Admissions that overtook it while it waited for a slot.
    pub overtaken: u32,
}

impl Sequence {
    /// A sequence that waits.
    pub fn new(key: Key, request: Request, adapter: Option<Arc<Entry>>) -> Self {
        // Room for all that will come, within reason: growing would copy the prompt.
        let room = request.prompt.len() + request.max_tokens.min(1024) as usize;
        let mut tokens = Vec::with_capacity(room);
        tokens.extend_from_slice(&request.prompt);
        Self {
            key,
            request,
            adapter,
            lease: None,
            tokens,
            pending: 0,
            query: 0,
            computed: 0,
            in_flight: 0,
            over: false,
            blocks: Vec::new(),
            chain: Vec::new(),
            scored: 0,
            waits_for_slot: false,
            overtaken: 0,
        }
    }

    /// Where its adapter lies; `None` is the base.
    pub fn slot(&self) -> Option<Slot> {
        self.lease.as_ref().map(Lease::slot)
    }

    /// Tokens, pending ones included.
    pub fn len(&self) -> usize {
        self.tokens.len() + self.pending
    }

    /// Tokens drawn so far, pending ones included.
    pub fn drawn(&self) -> usize {
        self.len() - self.request.prompt.len()
    }

    /// Rows to compute: tokens whose keys and values are in the cache for no step started so far.
    /// A sequence that ends with the token pending needs none.
    pub fn uncomputed(&self) -> usize {
        let ends = self.drawn() > 0 && self.drawn() == self.request.max_tokens as usize;
        if ends || self.over { 0 } else { self.len() - self.computed }
    }

    /// Prompt tokens whose logprobs were asked for and are not known yet.
    pub fn unscored(&self) -> usize {
        match self.request.prompt_logprobs {
            Some(_) => self.request.prompt.len() - 1 - self.scored,
            None => 0,
        }
    }

    /// Prompt positions among the next `rows` whose successor's logprob is asked for.
    pub fn scores(&self, rows: usize) -> Range<usize> {
        let end = match self.unscored() {
            0 => self.scored,
            _ => (self.computed + rows).min(self.request.prompt.len() - 1),
        };
        self.scored..end.max(self.scored)
    }

    /// Whether computing the next `rows` ends with a draw.
    pub fn draws(&self, rows: usize) -> bool {
        rows == self.uncomputed() && self.drawn() < self.request.max_tokens as usize
    }

    /// Names its first `blocks` full blocks.
    pub fn extend_chain(&mut self, blocks: usize, block_tokens: usize) {
        let generation = self.lease.as_ref().map(Lease::generation);
        while self.chain.len() < blocks {
            let at = self.chain.len();
            let last = self.chain.last().copied().unwrap_or_else(|| Digest::root(generation));
            let tokens = &self.tokens[at * block_tokens..(at + 1) * block_tokens];
            self.chain.push(last.after(tokens));
        }
    }
}
