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

/// The part of one running sequence in a step: `rows` tokens from position `first` on. Its queries
/// are those for the prompt's logprobs, then that of the draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index into [`Scheduler::running`] when the step was planned.
    pub at: usize,
    /// The sequence.
    pub key: Key,
    /// Position of its first row.
    pub first: usize,
    /// Tokens to compute.
    pub rows: usize,
    /// Prompt logprobs that it asks for.
    pub scores: usize,
    /// Whether it ends with a draw.
    pub draws: bool,
}

impl Share {
    fn new(at: usize, sequence: &Sequence, rows: usize) -> Self {
        let (key, first) = (sequence.key, sequence.computed);
        let (scores, draws) = (sequence.scores(rows).len(), sequence.draws(rows));
        Self { at, key, first, rows, scores, draws }
    }

    /// Position behind its last row.
    pub fn end(&self) -> usize {
        self.first + self.rows
    }
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

    /// Takes note that a step with these shares starts: what is planned next comes after it.
    pub fn begin(&mut self, shares: &[Share]) {
        let mut queries = 0;
        for share in shares {
            let sequence = &mut self.running[share.at];
            sequence.in_flight += 1;
            sequence.scored += share.scores;
            sequence.computed += share.rows;
            queries += share.scores;
            if share.draws {
                sequence.pending += 1;
                sequence.query = queries;
                queries += 1;
            }
        }
    }

    /// Takes note that the oldest step in flight computed this share, and what it drew. The token
    /// is dropped where the sequence has ended meanwhile.
    pub fn settle(&mut self, share: &Share, token: Option<u32>) -> &mut Sequence {
        let at = self.land(share);
        let sequence = &mut self.running[at];
        if !sequence.over {
            name_blocks(&mut self.pool, &self.limits, sequence, share);
            sequence.tokens.extend(token);
        }
        sequence
    }

    /// Takes note that nothing came of this share of the oldest step in flight: its sequence ends.
    pub fn fail(&mut self, share: &Share) {
        let at = self.land(share);
        self.running[at].over = true;
    }

    /// A share is in flight no more. Where its sequence runs now.
    fn land(&mut self, share: &Share) -> usize {
        let at = self.place(share);
        self.running[at].in_flight -= 1;
        self.running[at].pending -= usize::from(share.draws);
        at
    }

    /// Where a sequence with a share in flight runs now. It stays while it is in flight, and others
    /// before it may have gone.
    fn place(&self, share: &Share) -> usize {
        let last = share.at.min(self.running.len() - 1);
        let found = (0..=last).rev().find(|at| self.running[*at].key == share.key);
        found.expect("who is in flight runs: this is a bug")
    }

    /// Nothing is in flight any more, and nothing will be.
    pub fn abandon(&mut self) {
        for sequence in &mut self.running {
            (sequence.in_flight, sequence.over) = (0, true);
        }
    }

    /// Takes note of who ended: they are planned no more.
    pub fn end(&mut self, mut ended: impl FnMut(Key) -> bool) {
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            sequence.over = sequence.over || ended(sequence.key);
        }
    }

    /// Lets go of all sequences that ended, with their blocks and leases. The only place that does.
    /// Those in flight stay until they are not, so that whatever their rows read or write is theirs
    /// alone; answers with their number.
    pub fn retire(&mut self, mut gone: impl FnMut(Key)) -> usize {
        let (pool, mut left) = (&mut self.pool, 0);
        let mut stays = |sequence: &mut Sequence| {
            if sequence.over && sequence.in_flight == 0 {
                give_back(pool, sequence);
                gone(sequence.key);
                return false;
            }
            left += usize::from(sequence.over);
            true
        };
        self.running.retain_mut(&mut stays);
        self.waiting.retain_mut(&mut stays);
        left
    }

    /// Whether there are blocks for the next token of all that run. Where there are not, somebody
    /// has to give way.
    pub fn has_blocks(&self) -> bool {
        let lacks = |it: &Sequence| {
            it.len().div_ceil(self.limits.block_tokens).saturating_sub(it.blocks.len())
        };
        let decoding = self.running.iter().filter(|it| it.uncomputed() == 1);
        decoding.map(lacks).sum::<usize>() <= self.pool.available()
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
                plan.shares.push(Share::new(at, &self.running[at], 1));
                room.rows -= 1;
            }
            at += 1;
        }
    }

    /// Makes sure that a sequence has a block for its next position, if need be at the cost of the
    /// youngest. False if that was the sequence itself.
    fn has_block(&mut self, at: usize, plan: &mut Plan) -> bool {
        let needed = self.running[at].len().div_ceil(self.limits.block_tokens);
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
            plan.shares.push(Share::new(at, sequence, rows));
        }
    }
}

/// Names the blocks that a share filled: its tokens are known by now, and were computed.
fn name_blocks(pool: &mut Pool, limits: &Limits, sequence: &mut Sequence, share: &Share) {
    let [before, full] = [share.first, share.end()].map(|end| end / limits.block_tokens);
    if limits.prefix_cache && full > before {
        sequence.extend_chain(full, limits.block_tokens);
        for block in before..full {
            pool.name(sequence.blocks[block], sequence.chain[block]);
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
