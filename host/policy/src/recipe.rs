//! How instances of a generation are made.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use config::settings::Limits;
use contract::policy::hook::Hook;
use wasmtime::component::{InstancePre, Linker};
use wasmtime::{Engine, Store};

use crate::bindings::exports::drystone::policy as wit;
use crate::failure::Failure;
use crate::grants;
use crate::guest::{Guest, Services};
use crate::instance::Instance;
use crate::load::{LoadError, Loaded};

/// Time of `describe`, `init` and `self-test`. Runtimes of scripting languages need some of it.
pub(crate) const START: Duration = Duration::from_secs(2);

/// Everything that instances of one generation have in common.
pub(crate) struct Recipe {
    pub(crate) pre: InstancePre<Guest>,
    pub(crate) indices: Indices,
    pub(crate) services: Arc<Services>,
    pub(crate) limits: Limits,
    /// The plugin's own configuration as JSON.
    pub(crate) config: String,
    /// The engine counts fuel. One that does not makes an error of every look at it, backtrace and
    /// all.
    pub(crate) counts: bool,
    /// It has a WASI world, where it can sleep.
    wasi: bool,
}

/// Where the functions of each interface are in the component; `None` where it is not asked.
pub(crate) struct Indices {
    pub(crate) plugin: wit::plugin::GuestIndices,
    pub(crate) authorize: Option<wit::authorize::GuestIndices>,
    pub(crate) on_request: Option<wit::on_request::GuestIndices>,
    pub(crate) select_adapter: Option<wit::select_adapter::GuestIndices>,
    pub(crate) resolve_adapter: Option<wit::resolve_adapter::GuestIndices>,
    pub(crate) admit: Option<wit::admit::GuestIndices>,
    pub(crate) score_replicas: Option<wit::score_replicas::GuestIndices>,
    pub(crate) on_chunk: Option<wit::on_chunk::GuestIndices>,
    pub(crate) on_response: Option<wit::on_response::GuestIndices>,
    pub(crate) on_complete: Option<wit::on_complete::GuestIndices>,
}

impl Recipe {
    /// Links `loaded` to what is granted and looks its functions up.
    pub(crate) fn new(
        engine: &Engine,
        loaded: &Loaded,
        hooks: &[Hook],
        allow: &config::settings::Allow,
        kit: Kit,
    ) -> Result<Self, LoadError> {
        let types = |error: wasmtime::Error| LoadError::Types(format!("{error:#}"));
        let mut linker = Linker::new(engine);
        grants::wire(&mut linker, allow).map_err(types)?;
        let pre = linker.instantiate_pre(&loaded.component).map_err(types)?;
        let indices = Indices::new(&pre, hooks).map_err(types)?;
        let Kit { services, limits, config } = kit;
        let counts = Store::new(engine, ()).get_fuel().is_ok();
        Ok(Self { pre, indices, services, limits, config, counts, wasi: loaded.surface.wasi })
    }

    /// The configuration, which is JSON as the deployment's reader wrote it.
    pub(crate) fn settings(&self) -> serde_json::Value {
        serde_json::from_str(&self.config).unwrap_or_default()
    }

    /// A new instance that has been given its configuration.
    pub(crate) async fn make(&self) -> Result<Box<Instance>, Failure> {
        let (mut instance, _) = self.within(START, || self.start()).await?;
        instance.finish_start();
        Ok(instance)
    }

    /// Bounds `work`, which may take `time` on the processor, by the clock too where the guest
    /// could sleep. Other requests on the thread take their share of that.
    ///
    /// The future of a call is large; it is made where it stays.
    pub(crate) async fn within<T, E, W>(
        &self,
        time: Duration,
        work: impl FnOnce() -> W,
    ) -> Result<T, Failure>
    where
        Failure: From<E>,
        W: Future<Output = Result<T, E>>,
    {
        const SHARE: u32 = 4;
        if !self.wasi {
            return Ok(work().await?);
        }
        match tokio::time::timeout(time * SHARE, work()).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Failure::Timeout),
        }
    }

    /// The same, still in its start; and what it asks of the host.
    pub(crate) async fn start(&self) -> Result<(Box<Instance>, wit::plugin::Setup), Failure> {
        let mut instance = Instance::new(self).await?;
        match instance.init(&self.config).await? {
            Ok(setup) => Ok((instance, setup)),
            Err(reason) => Err(Failure::Start(reason)),
        }
    }
}

/// What a recipe needs besides the component.
pub(crate) struct Kit {
    pub(crate) services: Arc<Services>,
    pub(crate) limits: Limits,
    pub(crate) config: String,
}

impl Indices {
    fn new(pre: &InstancePre<Guest>, hooks: &[Hook]) -> wasmtime::Result<Self> {
        let asked = |hook: Hook| hooks.contains(&hook).then_some(pre);
        Ok(Self {
            plugin: wit::plugin::GuestIndices::new(pre)?,
            authorize: look_up(asked(Hook::Authorize), wit::authorize::GuestIndices::new)?,
            on_request: look_up(asked(Hook::OnRequest), wit::on_request::GuestIndices::new)?,
            select_adapter: look_up(
                asked(Hook::SelectAdapter),
                wit::select_adapter::GuestIndices::new,
            )?,
            resolve_adapter: look_up(
                asked(Hook::ResolveAdapter),
                wit::resolve_adapter::GuestIndices::new,
            )?,
            admit: look_up(asked(Hook::Admit), wit::admit::GuestIndices::new)?,
            score_replicas: look_up(
                asked(Hook::ScoreReplicas),
                wit::score_replicas::GuestIndices::new,
            )?,
            on_chunk: look_up(asked(Hook::OnChunk), wit::on_chunk::GuestIndices::new)?,
            on_response: look_up(asked(Hook::OnResponse), wit::on_response::GuestIndices::new)?,
            on_complete: look_up(asked(Hook::OnComplete), wit::on_complete::GuestIndices::new)?,
        })
    }
}

fn look_up<I>(
    pre: Option<&InstancePre<Guest>>,
    new: fn(&InstancePre<Guest>) -> wasmtime::Result<I>,
) -> wasmtime::Result<Option<I>> {
    pre.map(new).transpose()
}
