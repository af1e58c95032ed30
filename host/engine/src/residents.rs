//! Brings adapters to where sequences can use them: from disk, and into a slot.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use adapters::catalogue::{Catalogue, Entry};
use adapters::residency::{Need, Place, Residency, Wait};
use contract::step::{Executor, Fault};

use crate::load::Shared;
use crate::loader::{Loaded, Loader};
use crate::metrics::{AdapterMetrics, Level};
use crate::scheduler::{Leasing, Slots};

/// All adapters of one engine and where they are.
pub struct Residents {
    residency: Residency,
    catalogue: Arc<Catalogue>,
    loader: Loader,
    metrics: Arc<AdapterMetrics>,
    /// Pinned adapters that are not in their slots yet.
    pinned: Vec<Arc<Entry>>,
    /// Something moved since it was published.
    moved: bool,
    /// Something lies here that nobody can ask for any more.
    stale: bool,
}

impl Residents {
    /// Nothing resident yet.
    pub fn new(
        residency: Residency,
        catalogue: Arc<Catalogue>,
        loader: Loader,
        metrics: Arc<AdapterMetrics>,
    ) -> Self {
        let pinned = catalogue.entries().filter(|entry| entry.pinned).collect();
        Self { residency, catalogue, loader, metrics, pinned, moved: false, stale: false }
    }

    /// Takes note that the catalogue changed.
    pub fn catalogue_changed(&mut self) {
        let absent = |entry: &Arc<Entry>| self.residency.place(entry) != Place::Slot;
        let pinned = self.catalogue.entries().filter(|entry| entry.pinned);
        self.pinned = pinned.filter(absent).collect();
        self.stale = self.residency.holds(|entry| !self.catalogue.serves(entry));
    }

    /// Whether there may be something for [`Residents::sweep`].
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Frees the slots and the host memory of adapters that neither the catalogue serves nor an
    /// open sequence has.
    pub fn sweep(
        &mut self,
        executor: &mut dyn Executor,
        open: impl Fn(&Entry) -> bool,
    ) -> Result<(), Fault> {
        let catalogue = Arc::clone(&self.catalogue);
        let freed = self.residency.sweep(|entry| catalogue.serves(entry) || open(entry));
        self.stale = self.residency.holds(|entry| !catalogue.serves(entry));
        self.moved = true;
        for slot in freed {
            match executor.unload(slot) {
                Err(Fault::Refused(reason)) => tracing::warn!(reason, "a slot was not unloaded"),
                other => other?,
            }
        }
        Ok(())
    }

    /// Starts to load an adapter that lies on disk, before its sequence is looked at.
    pub fn prefetch(&mut self, entry: &Arc<Entry>) {
        if self.residency.place(entry) == Place::Disk
            && let Need::Load = self.residency.want(entry)
        {
            self.loader.load(entry);
        }
    }

    /// Takes a loader's answer; an error is for all that wait for this adapter.
    pub fn loaded(&mut self, loaded: Loaded) -> Result<(), String> {
        let name = &loaded.entry.name;
        let (seconds, label) = (loaded.elapsed.as_secs_f64(), |result| [("result", result)]);
        self.metrics.load_seconds.observe(seconds);
        self.moved = true;
        self.stale |= !self.catalogue.serves(&loaded.entry);
        match loaded.result {
            Ok(generation) => {
                tracing::info!(adapter = %name, generation = %generation.id, seconds, "loaded");
                self.metrics.loads.get_or_create(&label("ok")).inc();
                self.residency.loaded(&loaded.entry, generation);
                Ok(())
            }
            Err(message) => {
                tracing::warn!(adapter = %name, message, "cannot be loaded");
                self.metrics.loads.get_or_create(&label("error")).inc();
                self.residency.failed(&loaded.entry);
                self.pinned.retain(|entry| entry.id != loaded.entry.id);
                Err(format!("adapter `{name}` cannot be loaded: {message}"))
            }
        }
    }

    /// Brings pinned adapters nearer to their slots.
    pub fn place_pinned(&mut self, executor: &mut dyn Executor) -> Result<(), Fault> {
        let mut pinned = mem::take(&mut self.pinned);
        let mut leases = Leases::new(self, executor);
        pinned.retain(|entry| matches!(leases.lease(entry), Leasing::Later(_)));
        let fault = leases.fault;
        self.pinned = pinned;
        fault.map_or(Ok(()), Err)
    }

    /// Tells metrics and callers what moved.
    pub fn publish(&mut self, shared: &Shared) {
        if !mem::take(&mut self.moved) {
            return;
        }
        let slots: Vec<&Arc<Entry>> = self.residency.resident().map(|it| it.entry).collect();
        let level = |entry: &Arc<Entry>| match self.residency.place(entry) {
            Place::Slot => Level::Slot,
            _ => Level::Host,
        };
        let host = self.residency.in_host().filter(|entry| level(entry) == Level::Host);
        let all = slots.iter().copied().chain(host);
        self.metrics.set_resident(all.map(|entry| (entry.name.as_str(), level(entry))));
        self.metrics.host_bytes.set(self.residency.host_bytes() as i64);
        let ids = slots.iter().map(|entry| entry.id).collect();
        shared.resident.store(Arc::new(ids));
    }
}

/// Gives leases during one plan; activations happen on the way.
pub struct Leases<'a> {
    residents: &'a mut Residents,
    executor: &'a mut dyn Executor,
    /// The ranks were lost.
    pub fault: Option<Fault>,
}

impl<'a> Leases<'a> {
    /// For the time between two steps.
    pub fn new(residents: &'a mut Residents, executor: &'a mut dyn Executor) -> Self {
        Self { residents, executor, fault: None }
    }
}

impl Slots for Leases<'_> {
    fn lease(&mut self, entry: &Arc<Entry>) -> Leasing {
        let residents = &mut *self.residents;
        let (lease, generation) = match residents.residency.want(entry) {
            Need::Ready(lease) => return Leasing::Granted(lease),
            Need::Wait(wait) => return Leasing::Later(wait),
            Need::Load => {
                residents.loader.load(entry);
                return Leasing::Later(Wait::Loading);
            }
            Need::Activate { lease, generation, .. } => (lease, generation),
        };
        let start = Instant::now();
        residents.moved = true;
        match self.executor.load(lease.slot(), generation) {
            Ok(()) => {
                residents.metrics.activations.inc();
                let seconds = start.elapsed().as_secs_f64();
                residents.metrics.activation_seconds.observe(seconds);
                Leasing::Granted(lease)
            }
            Err(Fault::Refused(reason)) => {
                tracing::warn!(adapter = %entry.name, reason, "the ranks refused an adapter");
                residents.residency.vacate(lease);
                Leasing::Refused(format!("adapter `{}` got no slot: {reason}", entry.name))
            }
            Err(fault) => {
                self.fault = Some(fault);
                Leasing::Later(Wait::Slot)
            }
        }
    }
}
