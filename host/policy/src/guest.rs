//! What the host keeps for one instance: the request under way and what the plugin may use.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use contract::policy::replica::Surroundings;
use contract::policy::subject::{Headers, Message};
use prometheus_client::metrics::gauge::Gauge;
use wasmtime::UpdateDeadline;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::bindings::drystone::policy::types::Request;
use crate::bounds::Bounds;
use crate::quiet::LogGate;
use crate::state::counters::Counters;
use crate::state::kv::Store;
use crate::state::text::Texts;
use crate::tail::Tail;

/// What the request under way shows to a guest that asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ambient {
    pub(crate) headers: Headers,
    pub(crate) messages: Arc<[Message]>,
    /// What is answered, while text of it is looked at.
    pub(crate) request: Option<Arc<Request>>,
    /// The end of the text that was released before.
    pub(crate) released: Tail,
    /// What the guest keeps for a choice between its chunks.
    pub(crate) state: Vec<u8>,
}

/// What all instances of a generation share.
pub(crate) struct Services {
    pub(crate) plugin: Arc<str>,
    /// Headers that are both granted and asked for.
    pub(crate) headers: OnceLock<Vec<String>>,
    pub(crate) kv: Arc<Store>,
    pub(crate) counters: Counters,
    pub(crate) log: Arc<LogGate>,
    pub(crate) texts: Texts,
    pub(crate) surroundings: Arc<OnceLock<Arc<dyn Surroundings>>>,
    /// Instances alive.
    pub(crate) instances: Gauge,
    pub(crate) since: Instant,
}

/// The data of an instance's store.
pub(crate) struct Guest {
    pub(crate) services: Arc<Services>,
    pub(crate) ambient: Ambient,
    pub(crate) bounds: Bounds,
    /// It is in `init`, where sets of patterns may be made.
    pub(crate) starting: bool,
    ticks_left: u32,
    /// A world with nothing in it, made when a guest that was promised one first looks.
    wasi: Option<WasiCtx>,
    resources: ResourceTable,
}

impl Guest {
    pub(crate) fn new(services: Arc<Services>, memory: usize) -> Self {
        services.instances.inc();
        let bounds = Bounds::new(memory);
        Self {
            services,
            ambient: Ambient::default(),
            bounds,
            starting: true,
            ticks_left: 0,
            wasi: None,
            resources: ResourceTable::new(),
        }
    }

    /// Gives the next call so many ticks.
    pub(crate) fn grant_ticks(&mut self, ticks: u32) {
        self.ticks_left = ticks;
    }

    /// At each tick of the clock: give way to other requests, or end when the time is used up.
    pub(crate) fn on_tick(&mut self) -> UpdateDeadline {
        match self.ticks_left.checked_sub(1) {
            None => UpdateDeadline::Interrupt,
            Some(left) => {
                self.ticks_left = left;
                UpdateDeadline::Yield(1)
            }
        }
    }

    /// What the plugin may look at around it, once there is something.
    pub(crate) fn surroundings(&self) -> Option<&dyn Surroundings> {
        self.services.surroundings.get().map(AsRef::as_ref)
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.get_or_insert_with(|| WasiCtx::builder().build());
        WasiCtxView { ctx, table: &mut self.resources }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.services.instances.dec();
    }
}
