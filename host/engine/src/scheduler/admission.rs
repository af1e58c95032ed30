//! Who leaves the queue: by priority, then first come first served, but for those whose adapter is
//! not there yet.
//!
//! A sequence that waits for its adapter is overtaken by those behind it that can run. While it
//! waits for a *slot*, every overtaker with an adapter may keep a slot busy that it could have had,
//! so their number is bounded. Past the bound one slot is drained for it: of the adapters with
//! sequences in flight, the one with the fewest admits no more, and adapters without any stay out,
//! as they would take the slot. All others go on, and so does the base.

use std::sync::Arc;

use adapters::catalogue::Entry;
use adapters::residency::{Lease, Wait};
use contract::adapter::Slot;
use contract::step::BlockId;

use crate::scheduler::{Admission, Plan, Room, Scheduler};
use crate::sequence::Sequence;

/// Adapters that are asked for in one step at most; bounds the time of a plan.
const ASKS_MAX: usize = 64;

/// Answer to a sequence that needs its adapter in a slot.
pub enum Leasing {
    /// It is there.
    Granted(Lease),
    /// Ask again next step.
    Later(Wait),
    /// It cannot be had.
    Refused(String),
}

/// Gives leases on adapters.
pub trait Slots {
    /// Asks for a lease, and for what has to happen before one can be given.
    fn lease(&mut self, entry: &Arc<Entry>) -> Leasing;
}

impl Scheduler {
    pub(super) fn admit(&mut self, slots: &mut dyn Slots, plan: &mut Plan, room: &mut Room) {
        let mut walk = Walk { slots, later: Vec::new(), drain: None };
        // Who has no more rows is held here by a step in flight, but needs no seat in the next.
        let leaving = self.running.iter().filter(|it| it.uncomputed() == 0).count();
        let mut at = 0;
        while at < self.waiting.len()
            && self.running.len() - leaving < self.limits.sequences_max
            && room.rows > 0
            && walk.later.len() < ASKS_MAX
        {
            match walk.lease(&mut self.waiting[at]) {
                Answer::Ready => {
                    let Some(cached) = self.seat(at) else { return };
                    self.start(at, cached, plan, room);
                    continue;
                }
                Answer::Later if self.is_starving(at) && walk.drain.is_none() => {
                    walk.drain = Some(self.drain());
                }
                Answer::Later => {}
                Answer::Refused(reason) => plan.refused.push((self.waiting[at].key, reason)),
            }
            at += 1;
        }
    }

    fn is_starving(&self, at: usize) -> bool {
        self.waiting[at].overtaken >= self.limits.overtaken_max
    }

    /// Gives a waiting sequence the blocks that its tokens need, shared ones where their contents
    /// are known, and answers with the number of tokens in those. `None`: there are too few.
    fn seat(&mut self, at: usize) -> Option<usize> {
        let block_tokens = self.limits.block_tokens;
        let shared = self.shared_blocks(at);
        let needed = self.waiting[at].tokens.len().div_ceil(block_tokens) - shared.len();
        let revived = shared.iter().filter(|block| self.pool.is_free(**block)).count();
        // A few are left for those who run: they would preempt the newcomer at once.
        let spare = if self.running.is_empty() { 0 } else { self.pool.total() / 100 };
        if self.pool.available() < needed + revived + spare {
            return None;
        }
        shared.iter().for_each(|block| self.pool.hold(*block));
        let sequence = &mut self.waiting[at];
        sequence.computed = shared.len() * block_tokens;
        sequence.blocks = shared;
        sequence.blocks.extend((0..needed).map_while(|_| self.pool.take()));
        Some(sequence.computed)
    }

    /// Blocks of the prefix cache that a waiting sequence begins with. Its last token is always
    /// computed, for its logits, and so are those whose logprobs were asked for.
    fn shared_blocks(&mut self, at: usize) -> Vec<BlockId> {
        let sequence = &mut self.waiting[at];
        if !self.limits.prefix_cache {
            return Vec::new();
        }
        let known = if sequence.unscored() > 0 { sequence.scored } else { usize::MAX };
        let blocks = known.min(sequence.tokens.len() - 1) / self.limits.block_tokens;
        sequence.extend_chain(blocks, self.limits.block_tokens);
        sequence.chain[..blocks].iter().map_while(|name| self.pool.find(name)).collect()
    }

    fn start(&mut self, at: usize, cached: usize, plan: &mut Plan, room: &mut Room) {
        let sequence = self.waiting.remove(at).expect("`at` is in the queue: this is a bug");
        if sequence.adapter.is_some() {
            let passed = self.waiting.iter_mut().take(at);
            passed.filter(|it| it.waits_for_slot).for_each(|it| it.overtaken += 1);
        }
        let tokens = sequence.tokens.len();
        plan.admitted.push(Admission { key: sequence.key, cached, tokens });
        room.share(self.running.len(), &sequence, plan);
        self.running.push(sequence);
    }

    /// Picks the slot to drain: the one that fewest sequences hold, preempted ones included.
    fn drain(&self) -> Drain {
        let in_flight = self.running.iter().chain(&self.waiting);
        let held = in_flight.filter_map(|it| Some((it.slot()?, it.adapter.clone()?)));
        let mut slots: Vec<(usize, Slot, Arc<Entry>)> = Vec::new();
        for (slot, entry) in held {
            match slots.iter_mut().find(|(_, known, _)| *known == slot) {
                Some((holders, ..)) => *holders += 1,
                None => slots.push((1, slot, entry)),
            }
        }
        slots.sort_by_key(|(holders, slot, entry)| (entry.pinned, *holders, *slot));
        Drain { open: slots.into_iter().skip(1).map(|(.., entry)| entry).collect() }
    }
}

/// One walk down the queue.
struct Walk<'a> {
    slots: &'a mut dyn Slots,
    /// Adapters that are not to be had in this step, so that each is asked for once.
    later: Vec<(Arc<Entry>, Wait)>,
    /// Set behind the first sequence that waited long enough.
    drain: Option<Drain>,
}

enum Answer {
    Ready,
    Later,
    Refused(String),
}

impl Walk<'_> {
    /// Gets a waiting sequence the lease it needs, if any.
    fn lease(&mut self, sequence: &mut Sequence) -> Answer {
        let Some(adapter) = &sequence.adapter else { return Answer::Ready };
        if sequence.lease.is_some() {
            return Answer::Ready;
        }
        if self.drain.as_ref().is_some_and(|drain| !drain.admits(adapter)) {
            return Answer::Later;
        }
        let known = self.later.iter().find(|(asked, _)| Arc::ptr_eq(asked, adapter));
        let leasing = match known {
            Some((_, wait)) => Leasing::Later(*wait),
            None => self.slots.lease(adapter),
        };
        match leasing {
            Leasing::Granted(lease) => sequence.lease = Some(lease),
            Leasing::Refused(reason) => return Answer::Refused(reason),
            Leasing::Later(wait) => {
                if known.is_none() {
                    self.later.push((Arc::clone(adapter), wait));
                }
                sequence.waits_for_slot = wait == Wait::Slot;
                return Answer::Later;
            }
        }
        sequence.waits_for_slot = false;
        Answer::Ready
    }
}

/// Behind a sequence that waited long enough.
struct Drain {
    /// Adapters that may still admit: those in flight but for the one whose slot is drained.
    open: Vec<Arc<Entry>>,
}

impl Drain {
    fn admits(&self, adapter: &Entry) -> bool {
        adapter.pinned || self.open.iter().any(|open| open.id == adapter.id)
    }
}
