//! What `#[policy]` builds on: one instance in a slot, and the interfaces as calls on it.

use std::cell::Cell;
use std::marker::PhantomData;
use std::thread::LocalKey;

use crate::bindings::score_replicas::exports::drystone::policy::score_replicas::Table;
use crate::bindings::{
    admit, authorize, on_chunk, on_complete, on_request, on_response, plugin, resolve_adapter,
    score_replicas, select_adapter,
};
use crate::policy::{Policy, Setup};
use crate::types::{
    AdmitVerdict, Caller, Chunk, ChunkVerdict, Completion, Demand, Denial, Identity, Load, Replica,
    Request, RequestVerdict, Resolution, Response, ResponseEdit, Selection,
};
use crate::{configuration, schema};

/// Holds the instance from `init` on. It lives as long as the component's memory.
#[derive(Debug)]
pub struct Slot<P: 'static>(Cell<Option<&'static P>>);

impl<P> Slot<P> {
    /// A slot before `init`.
    #[expect(clippy::new_without_default, reason = "used in constants only")]
    pub const fn new() -> Self {
        Self(Cell::new(None))
    }
}

/// A policy that is the plugin of its component.
pub trait Plugin: Policy {
    /// Name of the author's crate.
    const NAME: &'static str;
    /// Version of the author's crate.
    const VERSION: &'static str;
    /// Where the instance is.
    fn slot() -> &'static LocalKey<Slot<Self>>;
}

/// The exports of a component around a policy.
#[derive(Debug)]
pub struct Exported<P>(PhantomData<P>);

fn instance<P: Plugin>() -> &'static P {
    let instance = P::slot().with(|slot| slot.0.get());
    instance.expect("the host calls `init` before any hook")
}

impl<P: Plugin> plugin::exports::drystone::policy::plugin::Guest for Exported<P> {
    fn describe() -> plugin::exports::drystone::policy::plugin::Description {
        plugin::exports::drystone::policy::plugin::Description {
            name: P::NAME.into(),
            version: P::VERSION.into(),
            config_schema: schema::document::<P::Config>(),
            headers: P::HEADERS.iter().map(|name| (*name).into()).collect(),
        }
    }

    fn init(config: String) -> Result<plugin::exports::drystone::policy::plugin::Setup, String> {
        log_panics();
        let policy = start::<P>(&config)?;
        let hold_back = policy.hold_back();
        P::slot().with(|slot| slot.0.set(Some(Box::leak(Box::new(policy)))));
        drop(config);
        settle();
        Ok(plugin::exports::drystone::policy::plugin::Setup { hold_back })
    }

    fn self_test() -> Result<(), String> {
        instance::<P>().self_test()
    }
}

/// An instance as `init` makes it, from a configuration in JSON.
pub(crate) fn start<P: Policy>(config: &str) -> Result<P, String> {
    P::new(configuration::read(config)?, &Setup::new())
}

/// What has been allocated by now stays; the arena starts over above it after every call.
fn settle() {
    #[cfg(target_family = "wasm")]
    crate::arena::settle();
}

/// A panic ends in a trap, of which the operator sees the place at best. The log says why.
fn log_panics() {
    #[cfg(target_family = "wasm")]
    std::panic::set_hook(Box::new(|panic| crate::host::log::error(&panic.to_string())));
}

impl<P: Plugin> authorize::exports::drystone::policy::authorize::Guest for Exported<P> {
    fn authorize(caller: Caller) -> Result<Identity, Denial> {
        instance::<P>().authorize(&caller)
    }
}

impl<P: Plugin> on_request::exports::drystone::policy::on_request::Guest for Exported<P> {
    fn on_request(request: Request) -> RequestVerdict {
        instance::<P>().on_request(&request)
    }
}

impl<P: Plugin> select_adapter::exports::drystone::policy::select_adapter::Guest for Exported<P> {
    fn select_adapter(request: Request) -> Selection {
        instance::<P>().select_adapter(&request)
    }
}

impl<P: Plugin> resolve_adapter::exports::drystone::policy::resolve_adapter::Guest for Exported<P> {
    fn resolve_adapter(request: Request, name: String) -> Resolution {
        instance::<P>().resolve_adapter(&request, &name)
    }
}

impl<P: Plugin> admit::exports::drystone::policy::admit::Guest for Exported<P> {
    fn admit(request: Request, load: Load) -> AdmitVerdict {
        instance::<P>().admit(&request, &load)
    }
}

impl<P: Plugin> score_replicas::exports::drystone::policy::score_replicas::Guest for Exported<P> {
    fn score_replicas(demand: Demand, replicas: Table) -> Vec<f32> {
        instance::<P>().score_replicas(&demand, &Replica::rows(&replicas))
    }
}

impl<P: Plugin> on_chunk::exports::drystone::policy::on_chunk::Guest for Exported<P> {
    fn on_chunk(chunk: Chunk) -> ChunkVerdict {
        instance::<P>().on_chunk(&chunk)
    }
}

impl<P: Plugin> on_response::exports::drystone::policy::on_response::Guest for Exported<P> {
    fn on_response(request: Request, response: Response) -> Vec<ResponseEdit> {
        instance::<P>().on_response(&request, &response)
    }
}

impl<P: Plugin> on_complete::exports::drystone::policy::on_complete::Guest for Exported<P> {
    fn on_complete(request: Request, completion: Completion) {
        instance::<P>().on_complete(&request, &completion);
    }
}
