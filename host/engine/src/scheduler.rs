//! Which sequences run in the next step, with how many tokens of each.
//!
//! No clock, no channel, no lock: the same calls give the same plans. A plan is made in three
//! phases, of which each takes what the one before left of the step's rows:
//!
//! 1. *decode*: running sequences with one token to compute, oldest first. When blocks run out, the
//!    youngest running sequence gives its blocks back and waits at the head of its priority; it
//!    will compute them again. Priority says who begins first; who runs is not made to yield to it.
//! 2. *prefill*: running sequences with more to compute go on in chunks. They have all blocks.
//! 3. *admission* ([`admission`]): waiting sequences by priority, then first come first served.

mod admission;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod world;

use std::collections::VecDeque;

use crate::blocks::Pool;
use crate::sequence::{Key, Sequence};

pub use crate::scheduler::admission::{Leasing, Slots};

/// Bounds of a step and of all that is in flight.
#[derive(Clone, Debug)]
pub struct Limits {
    /// KV blocks there are.
    pub blocks: usize,
    /// Positions in a block.
    pub block_tokens: usize,
    /// Rows in a step at most.
    pub batch_tokens_max: usize,
    /// Running sequences at most.
    pub sequences_max: usize,
    /// Whether blocks with known contents are shared.
    pub prefix_cache: bool,
    /// Prompt logprobs in a step at most: each takes a row of logits over the whole vocabulary.
    pub scores_max: usize,
    /// Admissions with an adapter that may overtake a sequence that waits for a slot.
    pub overtaken_max: u32,
}

/// The part of one running sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index into [`Scheduler::running`].
    pub at: usize,
    /// Tokens to compute, from the first uncomputed one on.
    pub rows: usize,
}

/// A sequence that began to run, for the first time or again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The sequence.
    pub key: Key,
    /// Tokens whose keys and values were found in the prefix cache.
    pub cached: usize,
    /// Tokens that were looked up.
    pub tokens: usize,
}

/// What one step does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sorted by slot, the base first.
    pub shares: Vec<Share>,
    /// Sequences that left the queue.
    pub admitted: Vec<Admission>,
    /// Sequences that went back to the queue.
    pub preempted: Vec<Key>,
    /// Waiting sequences whose adapter cannot be had, with the reason. They still have to be
    /// retired.
    pub refused: Vec<(Key, String)>,
}

/// What a step has room for.
struct Room {
    rows: usize,
    scores: usize,
}

/// All open sequences and the blocks they hold.
pub struct Scheduler {
    limits: Limits,
    pool: Pool,
    /// By priority, the lowest number first; then preempted ones, then by arrival.
    waiting: VecDeque<Sequence>,
    /// In the order of admission.
    running: Vec<Sequence>,
}

impl Scheduler {
    /// Nothing open, all blocks free.
    pub fn new(limits: Limits) -> Self {
        let pool = Pool::new(limits.blocks);
        Self { limits, pool, waiting: VecDeque::new(), running: Vec::new() }
    }

    /// Puts a new sequence into the queue, behind all of its priority.
    pub fn enqueue(&mut self, sequence: Sequence) {
        let priority = sequence.request.priority;
        let at = self.waiting.partition_point(|it| it.request.priority <= priority);
        self.waiting.insert(at, sequence);
    }

    /// Plans the next step. Asks `slots` for the adapters of those it admits.
    pub fn schedule(&mut self, slots: &mut dyn Slots, plan: &mut Plan) {
        plan.shares.clear();
        plan.admitted.clear();
        plan.preempted.clear();
        plan.refused.clear();
        let mut room = Room { rows: self.limits.batch_tokens_max, scores: self.limits.scores_max };
        self.decode(plan, &mut room);
        self.prefill(plan, &mut room);
        if plan.preempted.is_empty() {
            self.admit(slots, plan, &mut room);
        }
        let slot = |share: &Share| (self.running[share.at].slot(), share.at);
        plan.shares.sort_unstable_by_key(slot);
    }

    /// Takes note that the step computed this share.
    pub fn advance(&mut self, share: Share) -> &mut Sequence {
        let sequence = &mut self.running[share.at];
        let block_tokens = self.limits.block_tokens;
        sequence.scored = sequence.scores(share.rows).end;
        let full_before = sequence.computed / block_tokens;
        sequence.computed += share.rows;
        let full = sequence.computed / block_tokens;
        if self.limits.prefix_cache && full > full_before {
            sequence.extend_chain(full, block_tokens);
            for block in full_before..full {
                self.pool.name(sequence.blocks[block], sequence.chain[block]);
            }
        }
        sequence
    }

    /// Lets go of all sequences that ended, with their blocks and leases. The only place that does.
    pub fn retire(&mut self, mut ended: impl FnMut(Key) -> bool) {
        let pool = &mut self.pool;
        let mut stays = |sequence: &mut Sequence| {
            let ended = ended(sequence.key);
            if ended {
                give_back(pool, sequence);
            }
            !ended
        };
        self.running.retain_mut(&mut stays);
        self.waiting.retain_mut(&mut stays);
    }

    /// Running sequences; a plan's shares point here until the next change.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Waiting sequences, first to be served first.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// The blocks.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn decode(&mut self, plan: &mut Plan, room: &mut Room) {
        let mut at = 0;
        while at < self.running.len() && room.rows > 0 {
            if self.running[at].uncomputed() == 1 && self.has_block(at, plan) {
                plan.shares.push(Share { at, rows: 1 });
                room.rows -= 1;
            }
            at += 1;
        }
    }

    /// Makes sure that a sequence has a block for its next position, if need be at the cost of the
    /// youngest. False if that was the sequence itself.
    fn has_block(&mut self, at: usize, plan: &mut Plan) -> bool {
        let needed = self.running[at].tokens.len().div_ceil(self.limits.block_tokens);
        while self.running[at].blocks.len() < needed {
            match self.pool.take() {
                Some(block) => self.running[at].blocks.push(block),
                None => self.preempt_youngest(plan),
            }
            if at == self.running.len() {
                return false;
            }
        }
        true
    }

    fn preempt_youngest(&mut self, plan: &mut Plan) {
        let mut youngest = self.running.pop().expect("somebody runs: this is a bug");
        give_back(&mut self.pool, &mut youngest);
        plan.preempted.push(youngest.key);
        let priority = youngest.request.priority;
        let at = self.waiting.partition_point(|it| it.request.priority < priority);
        self.waiting.insert(at, youngest);
    }

    fn prefill(&mut self, plan: &mut Plan, room: &mut Room) {
        for (at, sequence) in self.running.iter().enumerate() {
            if sequence.uncomputed() > 1 {
                room.share(at, sequence, plan);
            }
        }
    }
}

impl Room {
    /// Gives a sequence as many of its rows as there is room for.
    fn share(&mut self, at: usize, sequence: &Sequence, plan: &mut Plan) {
        let mut rows = sequence.uncomputed().min(self.rows);
        if sequence.unscored() > self.scores {
            rows = rows.min(sequence.scored - sequence.computed + self.scores);
        }
        if rows > 0 {
            self.rows -= rows;
            self.scores -= sequence.scores(rows).len();
            plan.shares.push(Share { at, rows });
        }
    }
}

/// Frees a sequence's blocks, the last first, so that the beginning of a prompt stays cached the
/// longest.
fn give_back(pool: &mut Pool, sequence: &mut Sequence) {
    for block in sequence.blocks.drain(..).rev() {
        pool.release(block);
    }
    sequence.computed = 0;
}
