//! One instance of a guest, in a store of its own.

use std::time::Duration;

use wasmtime::Store;
use wasmtime::component::Instance as Component;

use crate::bindings::exports::drystone::policy as wit;
use crate::engine::TICK;
use crate::failure::Failure;
use crate::guest::{Ambient, Guest};
use crate::recipe::{Indices, Recipe, START};

/// Resources that a guest may hold; `drystone:policy` has none, WASI has a few.
const HANDLES: usize = 1000;

/// A guest that may be asked. Its memory is gone when this is.
pub(crate) struct Instance {
    pub(crate) store: Store<Guest>,
    pub(crate) hooks: Hooks,
    plugin: wit::plugin::Guest,
}

/// Its hooks; `None` where it is not asked.
pub(crate) struct Hooks {
    pub(crate) authorize: Option<wit::authorize::Guest>,
    pub(crate) on_request: Option<wit::on_request::Guest>,
    pub(crate) select_adapter: Option<wit::select_adapter::Guest>,
    pub(crate) resolve_adapter: Option<wit::resolve_adapter::Guest>,
    pub(crate) admit: Option<wit::admit::Guest>,
    pub(crate) score_replicas: Option<wit::score_replicas::Guest>,
    pub(crate) on_chunk: Option<wit::on_chunk::Guest>,
    pub(crate) on_response: Option<wit::on_response::Guest>,
    pub(crate) on_complete: Option<wit::on_complete::Guest>,
}

impl Instance {
    /// A new instance that has not been initialised.
    pub(crate) async fn new(recipe: &Recipe) -> Result<Box<Self>, Failure> {
        let guest = Guest::new(recipe.services.clone(), recipe.limits.memory_bytes);
        let mut store = Store::new(recipe.pre.engine(), guest);
        store.limiter(|guest| &mut guest.bounds);
        store.set_hostcall_fuel(recipe.limits.host_copy_bytes);
        store.set_max_component_handles(HANDLES);
        store.epoch_deadline_callback(|mut context| Ok(context.data_mut().on_tick()));
        if recipe.counts {
            // It must not be what ends the guest.
            store.set_fuel(u64::MAX)?;
        }
        grant(&mut store, START);
        let component = recipe.pre.instantiate_async(&mut store).await?;
        let plugin = recipe.indices.plugin.load(&mut store, &component)?;
        let hooks = Hooks::load(&recipe.indices, &mut store, &component)?;
        Ok(Box::new(Self { store, hooks, plugin }))
    }

    /// What the guest says about itself.
    pub(crate) async fn describe(&mut self) -> Result<wit::plugin::Description, Failure> {
        grant(&mut self.store, START);
        Ok(self.plugin.call_describe(&mut self.store).await?)
    }

    /// Gives the guest its configuration.
    pub(crate) async fn init(
        &mut self,
        config: &str,
    ) -> Result<Result<wit::plugin::Setup, String>, Failure> {
        grant(&mut self.store, START);
        Ok(self.plugin.call_init(&mut self.store, config).await?)
    }

    /// Asks the guest to try itself.
    pub(crate) async fn self_test(&mut self) -> Result<Result<(), String>, Failure> {
        grant(&mut self.store, START);
        Ok(self.plugin.call_self_test(&mut self.store).await?)
    }

    /// From now on the guest answers hooks.
    pub(crate) fn finish_start(&mut self) {
        self.store.data_mut().starting = false;
    }

    /// Readies the guest for one call.
    pub(crate) fn begin(&mut self, ambient: Ambient, time: Duration) {
        grant(&mut self.store, time);
        self.store.data_mut().ambient = ambient;
    }

    /// Takes back what `begin` gave.
    pub(crate) fn end(&mut self) -> Ambient {
        std::mem::take(&mut self.store.data_mut().ambient)
    }
}

/// Gives the next call `time` on the processor, to within a tick.
fn grant(store: &mut Store<Guest>, time: Duration) {
    let ticks = time.as_millis().div_ceil(TICK.as_millis());
    store.data_mut().grant_ticks(u32::try_from(ticks).unwrap_or(u32::MAX));
    store.set_epoch_deadline(1);
}

impl Hooks {
    fn load(
        indices: &Indices,
        store: &mut Store<Guest>,
        component: &Component,
    ) -> wasmtime::Result<Self> {
        /// Loads one interface where its indices are known.
        macro_rules! load {
            ($hook:ident) => {
                match &indices.$hook {
                    Some(indices) => Some(indices.load(&mut *store, component)?),
                    None => None,
                }
            };
        }
        Ok(Self {
            authorize: load!(authorize),
            on_request: load!(on_request),
            select_adapter: load!(select_adapter),
            resolve_adapter: load!(resolve_adapter),
            admit: load!(admit),
            score_replicas: load!(score_replicas),
            on_chunk: load!(on_chunk),
            on_response: load!(on_response),
            on_complete: load!(on_complete),
        })
    }
}
