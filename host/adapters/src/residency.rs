//! Which generations lie in device slots and in host memory, and which make room for others.
//!
//! Pure bookkeeping: it does no IO, has no clock and belongs to one owner, the engine thread. Each
//! round the engine asks what a waiting sequence needs and does what the answer says:
//!
//! ```text
//! want(entry) -> Load               ask the loader thread, once; its answer goes to
//!                                   loaded(entry, generation) or failed(entry)
//!             -> Wait(..)           ask again next round
//!             -> Activate { .. }    Executor::load(slot, generation), now; the lease is the
//!                                   sequence's. Should the ranks refuse: vacate(lease)
//!             -> Ready(lease)       the sequence can run
//! ```
//!
//! A sequence keeps its [`Lease`] from then on, through preemption too, so that it ends with the
//! generation that it began with. Dropping the lease gives the slot back.
//!
//! Entries are told apart by their id: one that took another's name shares nothing with it. What
//! nobody can ask for any more goes with [`Residency::sweep`].

use std::collections::HashMap;
use std::sync::Arc;

use contract::adapter::{Generation, GenerationId, Slot};

use crate::catalogue::Entry;

/// Loads under way at once; a channel to the loader with this much room is never full.
pub const LOADS_MAX: usize = 4;

/// How much may be resident.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Device slots.
    pub slots_max: usize,
    /// Host memory for generations, in bytes, those that are being loaded included.
    pub host_bytes_max: usize,
}

/// What has to happen before a sequence with some adapter can run.
#[derive(Debug)]
pub enum Need {
    /// Nothing: its generation lies in a slot.
    Ready(Lease),
    /// The ranks have to put `generation` into the lease's slot before the next step.
    Activate {
        /// Holds the slot.
        lease: Lease,
        /// What to put there.
        generation: Arc<Generation>,
        /// Name of the adapter that had the slot.
        evicted: Option<String>,
    },
    /// The loader has to read it from disk. Said once; then [`Wait::Loading`] until it answers.
    Load,
    /// Time.
    Wait(Wait),
}

/// What a sequence waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The loader reads this adapter, or too many others.
    Loading,
    /// Every slot is leased or pinned.
    Slot,
}

/// Keeps a generation in its slot; dropping the last one makes the slot evictable.
#[derive(Clone, Debug)]
pub struct Lease {
    slot: Slot,
    generation: GenerationId,
    _held: Arc<()>,
}

impl Lease {
    /// The slot that the generation lies in.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The generation that the sequence is bound to; belongs in its prefix-cache key.
    pub fn generation(&self) -> GenerationId {
        self.generation
    }
}

/// Where an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere but on disk.
    Disk,
    /// On its way into host memory.
    Loading,
    /// In host memory.
    Host,
    /// In a device slot.
    Slot,
}

/// A generation in a slot, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident<'a> {
    /// Its slot.
    pub slot: Slot,
    /// The adapter.
    pub entry: &'a Arc<Entry>,
    /// Sequences that hold it there.
    pub leases: usize,
    /// Whether it stays without any.
    pub pinned: bool,
}

/// Slots and host memory, and who has them. Both evict what was wanted longest ago.
#[derive(Debug)]
pub struct Residency {
    slots: Vec<Option<Occupant>>,
    /// Where entries lie in `slots`, by their id.
    slot_of: HashMap<u64, usize>,
    /// By the entry's id.
    host: HashMap<u64, HostCopy>,
    /// Sum over `host`.
    host_bytes: usize,
    host_bytes_max: usize,
    /// Counts calls of `want`: the order of uses.
    uses: u64,
}

/// What lies in a slot.
#[derive(Debug)]
struct Occupant {
    entry: Arc<Entry>,
    generation: GenerationId,
    /// One reference here and one in each lease.
    held: Arc<()>,
    used: u64,
}

/// What lies in host memory, or will.
#[derive(Debug)]
struct HostCopy {
    entry: Arc<Entry>,
    /// `None` while it is being loaded.
    generation: Option<Arc<Generation>>,
    used: u64,
}

impl Residency {
    /// All slots and all host memory free.
    pub fn new(limits: Limits) -> Self {
        Self {
            slots: (0..limits.slots_max).map(|_| None).collect(),
            slot_of: HashMap::new(),
            host: HashMap::new(),
            host_bytes: 0,
            host_bytes_max: limits.host_bytes_max,
            uses: 0,
        }
    }

    /// Says what a sequence with this adapter needs, and takes note of it: a slot or host memory
    /// that the answer names is taken from then on. The entry alone must fit into host memory,
    /// which the catalogue sees to.
    pub fn want(&mut self, entry: &Arc<Entry>) -> Need {
        self.uses += 1;
        if let Some(&slot) = self.slot_of.get(&entry.id) {
            return Need::Ready(self.lease(slot));
        }
        match self.host.get_mut(&entry.id) {
            None => self.load(entry),
            Some(HostCopy { generation: None, .. }) => Need::Wait(Wait::Loading),
            Some(HostCopy { generation: Some(generation), used, .. }) => {
                *used = self.uses;
                let generation = Arc::clone(generation);
                self.activate(entry, generation)
            }
        }
    }

    /// The loader answers a [`Need::Load`] with a generation.
    pub fn loaded(&mut self, entry: &Entry, generation: Arc<Generation>) {
        if let Some(copy) = self.host.get_mut(&entry.id) {
            copy.generation = Some(generation);
        }
    }

    /// The loader answers a [`Need::Load`] with an error. The next `want` tries again.
    pub fn failed(&mut self, entry: &Entry) {
        if self.place(entry) == Place::Loading {
            self.forget(entry.id);
        }
    }

    /// Empties a slot that the ranks refused to fill.
    pub fn vacate(&mut self, lease: Lease) {
        if let Some(occupant) = self.slots[lease.slot.index()].take() {
            self.slot_of.remove(&occupant.entry.id);
        }
    }

    /// Frees slots and host memory of all entries that need not be kept, and answers with the slots
    /// that the ranks have to unload. Leased slots and loads under way stay.
    pub fn sweep(&mut self, keep: impl Fn(&Entry) -> bool) -> Vec<Slot> {
        let goes = |occupant: &mut Occupant| !keep(&occupant.entry) && occupant.leases() == 0;
        let mut freed = Vec::new();
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if let Some(occupant) = place.take_if(goes) {
                self.slot_of.remove(&occupant.entry.id);
                freed.push(Slot(slot as u32));
            }
        }
        let goes = |copy: &&HostCopy| !keep(&copy.entry) && copy.generation.is_some();
        let ids: Vec<u64> = self.host.values().filter(goes).map(|it| it.entry.id).collect();
        ids.into_iter().for_each(|id| self.forget(id));
        freed
    }

    /// Whether a slot or host memory is taken by an entry that need not be kept.
    pub fn holds(&self, goes: impl Fn(&Entry) -> bool) -> bool {
        self.resident().any(|it| goes(it.entry)) || self.host.values().any(|it| goes(&it.entry))
    }

    /// Where an adapter is.
    pub fn place(&self, entry: &Entry) -> Place {
        match self.host.get(&entry.id) {
            _ if self.slot_of.contains_key(&entry.id) => Place::Slot,
            Some(HostCopy { generation: Some(_), .. }) => Place::Host,
            Some(HostCopy { generation: None, .. }) => Place::Loading,
            None => Place::Disk,
        }
    }

    /// What lies in the slots.
    pub fn resident(&self) -> impl Iterator<Item = Resident<'_>> {
        self.slots.iter().enumerate().filter_map(|(slot, occupant)| {
            let occupant = occupant.as_ref()?;
            Some(Resident {
                slot: Slot(slot as u32),
                entry: &occupant.entry,
                leases: occupant.leases(),
                pinned: occupant.entry.pinned,
            })
        })
    }

    /// What lies in host memory.
    pub fn in_host(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let loaded = self.host.values().filter(|copy| copy.generation.is_some());
        loaded.map(|copy| &copy.entry)
    }

    /// Host memory in use or promised to loads, in bytes.
    pub fn host_bytes(&self) -> usize {
        self.host_bytes
    }

    fn lease(&mut self, slot: usize) -> Lease {
        let occupant = self.slots[slot].as_mut().expect("leased slots are occupied: this is a bug");
        occupant.used = self.uses;
        Lease {
            slot: Slot(slot as u32),
            generation: occupant.generation,
            _held: Arc::clone(&occupant.held),
        }
    }

    fn activate(&mut self, entry: &Arc<Entry>, generation: Arc<Generation>) -> Need {
        let Some(slot) = self.vacant_slot() else { return Need::Wait(Wait::Slot) };
        let evicted = self.slots[slot].replace(Occupant {
            entry: Arc::clone(entry),
            generation: generation.id,
            held: Arc::new(()),
            used: self.uses,
        });
        let evicted = evicted.map(|occupant| {
            self.slot_of.remove(&occupant.entry.id);
            occupant.entry.name.clone()
        });
        self.slot_of.insert(entry.id, slot);
        Need::Activate { lease: self.lease(slot), generation, evicted }
    }

    /// A slot that is free, or else the one whose generation nobody needs for the longest time.
    fn vacant_slot(&self) -> Option<usize> {
        let used = |slot: &Option<Occupant>| slot.as_ref().map(|occupant| occupant.used);
        let slots = self.slots.iter().enumerate();
        let vacant = slots.filter(|(_, slot)| slot.as_ref().is_none_or(Occupant::is_idle));
        vacant.min_by_key(|(_, slot)| used(slot)).map(|(index, _)| index)
    }

    /// A load evicts others from host memory only when a slot waits for it. Otherwise sequences
    /// that wait for slots would evict each other's generations in turn and load forever.
    fn load(&mut self, entry: &Arc<Entry>) -> Need {
        let loading = self.host.values().filter(|copy| copy.generation.is_none());
        let bytes = loading.map(|copy| copy.entry.bytes);
        let (loads, bytes) = bytes.fold((0, 0), |(loads, sum), bytes| (loads + 1, sum + bytes));
        if loads == LOADS_MAX || bytes + entry.bytes > self.host_bytes_max {
            return Need::Wait(Wait::Loading);
        }
        if self.vacant_slot().is_some() {
            self.make_room(entry.bytes);
        }
        if self.host_bytes + entry.bytes > self.host_bytes_max {
            return Need::Wait(Wait::Slot);
        }
        let copy = HostCopy { entry: Arc::clone(entry), generation: None, used: self.uses };
        self.host.insert(entry.id, copy);
        self.host_bytes += entry.bytes;
        Need::Load
    }

    /// Drops the copies that nobody wanted for the longest time until `bytes` fit.
    fn make_room(&mut self, bytes: usize) {
        while self.host_bytes + bytes > self.host_bytes_max {
            let loaded = self.host.iter().filter(|(_, copy)| copy.generation.is_some());
            let oldest = loaded.min_by_key(|(_, copy)| copy.used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, id: u64) {
        let copy = self.host.remove(&id);
        self.host_bytes -= copy.map_or(0, |copy| copy.entry.bytes);
    }
}

impl Occupant {
    fn leases(&self) -> usize {
        Arc::strong_count(&self.held) - 1
    }

    fn is_idle(&self) -> bool {
        !self.entry.pinned && self.leases() == 0
    }
}
