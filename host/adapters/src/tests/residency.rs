//! Slots and host memory are never given twice, nor taken from who needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use contract::adapter::{Generation, GenerationId, Kind, Slot};
use proptest::prelude::*;

use crate::catalogue::Entry;
use crate::residency::{LOADS_MAX, Lease, Limits, Need, Place, Residency, Wait};

fn entry(name: usize, bytes: usize, pinned: bool) -> Arc<Entry> {
    let (id, path, kind) = (name as u64, PathBuf::new(), Kind::Plain);
    Arc::new(Entry {
        id,
        name: name.to_string(),
        path,
        kind,
        lora_rank: 8,
        bytes,
        pinned,
        sha256: None,
    })
}

fn generation(entry: &Entry) -> Arc<Generation> {
    Arc::new(Generation {
        id: GenerationId([entry.name.parse().unwrap(); 32]),
        name: entry.name.clone(),
        kind: entry.kind,
        lora_rank: entry.lora_rank,
        ranks: Vec::new(),
    })
}

fn residency(slots_max: usize, host_bytes_max: usize) -> Residency {
    Residency::new(Limits { slots_max, host_bytes_max })
}

/// Loads and activates; panics if that takes anything else.
#[track_caller]
fn activate(residency: &mut Residency, entry: &Arc<Entry>) -> (Lease, Option<String>) {
    assert!(matches!(residency.want(entry), Need::Load));
    assert!(matches!(residency.want(entry), Need::Wait(Wait::Loading)), "said once");
    residency.loaded(entry, generation(entry));
    match residency.want(entry) {
        Need::Activate { lease, generation, evicted } => {
            assert_eq!((&generation.name, generation.id), (&entry.name, lease.generation()));
            (lease, evicted)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_adapter_goes_from_disk_to_its_slot_once() {
    let (mut residency, entry) = (residency(2, 100), entry(1, 40, false));
    assert_eq!(residency.place(&entry), Place::Disk);
    let (lease, evicted) = activate(&mut residency, &entry);
    assert_eq!((lease.slot(), evicted, residency.place(&entry)), (Slot(0), None, Place::Slot));
    let Need::Ready(second) = residency.want(&entry) else { panic!("it is there") };
    assert_eq!(second.slot(), lease.slot());
    let resident = residency.resident().next().unwrap();
    assert_eq!((&*resident.entry.name, resident.leases, resident.pinned), ("1", 2, false));
    drop((lease, second));
    assert_eq!(residency.resident().next().unwrap().leases, 0, "idle, but still there");
}

#[test]
fn the_slot_that_idles_longest_is_evicted_and_comes_back_from_host_memory() {
    let mut residency = residency(2, 200);
    let entries: Vec<_> = (0..3).map(|name| entry(name, 40, false)).collect();
    drop(activate(&mut residency, &entries[0]));
    drop(activate(&mut residency, &entries[1]));
    drop(residency.want(&entries[0]));
    let (_held, evicted) = activate(&mut residency, &entries[2]);
    assert_eq!(evicted.as_deref(), Some("1"), "0 was used after it");
    assert_eq!(residency.place(&entries[1]), Place::Host);
    assert!(matches!(residency.want(&entries[1]), Need::Activate { .. }), "without the disk");
}

#[test]
fn leased_and_pinned_slots_stay() {
    let mut residency = residency(2, 200);
    drop(activate(&mut residency, &entry(0, 40, true)));
    let (held, _) = activate(&mut residency, &entry(1, 40, false));
    let other = entry(2, 40, false);
    assert!(matches!(residency.want(&other), Need::Load), "host memory is free: load ahead");
    residency.loaded(&other, generation(&other));
    assert!(matches!(residency.want(&other), Need::Wait(Wait::Slot)));
    drop(held);
    let Need::Activate { evicted, .. } = residency.want(&other) else { panic!("a slot is idle") };
    assert_eq!(evicted.as_deref(), Some("1"));
}

#[test]
fn waiting_for_a_slot_evicts_nobody_from_host_memory() {
    let mut residency = residency(1, 80);
    let (held, _) = activate(&mut residency, &entry(0, 40, false));
    let (one, two) = (entry(1, 40, false), entry(2, 40, false));
    assert!(matches!(residency.want(&one), Need::Load));
    residency.loaded(&one, generation(&one));
    for _ in 0..3 {
        assert!(matches!(residency.want(&two), Need::Wait(Wait::Slot)));
        assert!(matches!(residency.want(&one), Need::Wait(Wait::Slot)), "still loaded");
    }
    drop(held);
    assert!(matches!(residency.want(&one), Need::Activate { .. }));
}

#[test]
fn a_failed_load_and_a_refused_activation_leave_nothing_behind() {
    let (mut residency, entry) = (residency(1, 40), entry(1, 40, false));
    assert!(matches!(residency.want(&entry), Need::Load));
    residency.failed(&entry);
    assert_eq!((residency.place(&entry), residency.host_bytes()), (Place::Disk, 0));
    let (lease, _) = activate(&mut residency, &entry);
    residency.failed(&entry); // late and wrong: it is loaded
    assert_eq!(residency.host_bytes(), 40);
    residency.vacate(lease);
    assert_eq!(residency.place(&entry), Place::Host);
    assert_eq!(residency.resident().count(), 0);
}

#[test]
fn an_entry_shares_nothing_with_one_that_had_its_name() {
    let (mut residency, old) = (residency(2, 80), entry(1, 40, false));
    let new = Arc::new(Entry { id: 7, ..Entry::clone(&old) });
    let (lease, _) = activate(&mut residency, &old);
    let (newer, _) = activate(&mut residency, &new);
    assert_ne!(lease.slot(), newer.slot());
    let keep = |entry: &Entry| entry.id == new.id;
    assert_eq!(residency.sweep(keep), [], "it is leased");
    assert!(residency.holds(|entry| entry.id == old.id));
    drop(lease);
    assert_eq!(residency.sweep(keep), [Slot(0)]);
    assert_eq!((residency.place(&old), residency.place(&new)), (Place::Disk, Place::Slot));
    assert_eq!(residency.host_bytes(), 40);
}

#[test]
fn loads_under_way_are_bounded() {
    let mut residency = residency(64, 10_000);
    let entries: Vec<_> = (0..=LOADS_MAX).map(|name| entry(name, 1, false)).collect();
    for entry in &entries[..LOADS_MAX] {
        assert!(matches!(residency.want(entry), Need::Load));
    }
    assert!(matches!(residency.want(&entries[LOADS_MAX]), Need::Wait(Wait::Loading)));
    residency.failed(&entries[0]);
    assert!(matches!(residency.want(&entries[LOADS_MAX]), Need::Load));
}

/// What an engine may do, by number of an adapter.
#[derive(Clone, Debug)]
enum Act {
    Want(usize),
    Finish(usize),
    Loaded(usize),
    Failed(usize),
    Refuse(usize),
    Sweep(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (0..21usize, 0..9usize).prop_map(|(act, name)| match act {
        0..10 => Act::Want(name),
        10..14 => Act::Finish(name),
        14..18 => Act::Loaded(name),
        18 => Act::Failed(name),
        19 => Act::Sweep(name),
        _ => Act::Refuse(name),
    });
    prop::collection::vec(act, 1..400)
}

/// Plays an engine, and keeps its own books to compare with.
struct Engine {
    residency: Residency,
    entries: Vec<Arc<Entry>>,
    leases: Vec<(usize, Lease)>,
    loading: BTreeSet<usize>,
    slots: BTreeMap<Slot, usize>,
}

impl Engine {
    fn act(&mut self, act: Act) {
        match act {
            Act::Want(name) => self.want(name),
            Act::Finish(at) if at < self.leases.len() => drop(self.leases.remove(at)),
            Act::Loaded(name) if self.loading.remove(&name) => {
                let entry = &self.entries[name];
                self.residency.loaded(entry, generation(entry));
            }
            Act::Failed(name) if self.loading.remove(&name) => {
                self.residency.failed(&self.entries[name]);
            }
            Act::Refuse(name) => self.want_and_refuse(name),
            Act::Sweep(name) => self.sweep(name),
            _ => {}
        }
    }

    fn want(&mut self, name: usize) {
        match self.residency.want(&self.entries[name]) {
            Need::Ready(lease) => {
                assert_eq!(self.slots[&lease.slot()], name);
                self.leases.push((name, lease));
            }
            Need::Activate { lease, evicted, .. } => self.activated(name, lease, evicted),
            Need::Load => assert!(self.loading.insert(name), "asked to load {name} twice"),
            Need::Wait(Wait::Loading) => assert!(!self.loading.is_empty()),
            Need::Wait(Wait::Slot) => assert_eq!(self.slots.len(), 3, "a slot is free"),
        }
    }

    fn activated(&mut self, name: usize, lease: Lease, evicted: Option<String>) {
        let former = self.slots.insert(lease.slot(), name);
        assert_eq!(former.map(|it| it.to_string()), evicted);
        let former = former.unwrap_or(usize::MAX);
        assert!(self.leases.iter().all(|(leased, _)| *leased != former), "{former} was leased");
        assert!(former == usize::MAX || !self.entries[former].pinned, "{former} was pinned");
        self.leases.push((name, lease));
    }

    /// Nobody can ask for it any more; for the books, somebody may again later.
    fn sweep(&mut self, name: usize) {
        let leased = self.leases.iter().any(|(held, _)| *held == name);
        let id = self.entries[name].id;
        for slot in self.residency.sweep(|entry| entry.id != id) {
            assert_eq!(self.slots.remove(&slot), Some(name));
        }
        let place = self.residency.place(&self.entries[name]);
        assert_eq!(place == Place::Slot, leased);
        assert_eq!(place == Place::Loading, self.loading.contains(&name));
    }

    /// The ranks have no room for it.
    fn want_and_refuse(&mut self, name: usize) {
        let before = self.leases.len();
        let resident = self.residency.place(&self.entries[name]) == Place::Slot;
        self.want(name);
        if self.leases.len() > before && !resident {
            let (_, lease) = self.leases.pop().unwrap();
            self.slots.remove(&lease.slot());
            self.residency.vacate(lease);
        }
    }

    fn check(&self) {
        let found: BTreeMap<_, _> =
            self.residency.resident().map(|it| (it.slot, it.entry.name.parse().unwrap())).collect();
        assert_eq!(found, self.slots);
        for resident in self.residency.resident() {
            let name: usize = resident.entry.name.parse().unwrap();
            let leases = self.leases.iter().filter(|(leased, _)| *leased == name).count();
            assert_eq!(resident.leases, leases);
        }
        assert!(self.residency.host_bytes() <= 100 && self.loading.len() <= LOADS_MAX);
        let held = |entry: &&Arc<Entry>| {
            matches!(self.residency.place(entry), Place::Loading | Place::Host)
        };
        let bytes: usize = self.entries.iter().filter(held).map(|entry| entry.bytes).sum();
        assert!(bytes <= self.residency.host_bytes(), "the sum is kept");
    }

    /// Everybody who waits is served once the others are done.
    fn drain(&mut self) {
        self.leases.clear();
        for name in self.loading.clone() {
            self.act(Act::Loaded(name));
        }
        for name in 0..self.entries.len() {
            for act in [Act::Want(name), Act::Loaded(name), Act::Want(name)] {
                self.act(act);
            }
            assert_eq!(self.residency.place(&self.entries[name]), Place::Slot);
            self.leases.clear();
        }
    }
}

proptest! {
    #[test]
    fn books_are_kept_whatever_the_engine_does(acts in acts()) {
        let entries = (0..9).map(|name| entry(name, 10 + 10 * name, name == 4)).collect();
        let residency = residency(3, 100);
        let (leases, loading, slots) = Default::default();
        let mut engine = Engine { residency, entries, leases, loading, slots };
        for act in acts {
            engine.act(act);
            engine.check();
        }
        engine.drain();
    }
}
