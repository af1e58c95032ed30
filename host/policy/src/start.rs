//! Starts a host: every plugin is loaded before the server takes requests.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use config::settings::{Mode, Plugin as Settings, Policy as Deployment, Scope};
use contract::policy::builtin::Builtin;
use contract::policy::hook::Hook;
use contract::policy::replica::Surroundings;

use crate::background::{self, Background};
use crate::cache::Cache;
use crate::chain::Chains;
use crate::engine;
use crate::gate::Gate;
use crate::generation::{Generation, Workshop};
use crate::guest::Services;
use crate::host::{Host, Parts, StartError};
use crate::keeper::Keeper;
use crate::load::LoadError;
use crate::metrics::Metrics;
use crate::plugin::{History, Plugin};
use crate::quiet::LogGate;
use crate::record::Recorder;
use crate::scope::Scopes;
use crate::state::counters::Counters;
use crate::state::kv::Store;
use crate::state::text::Texts;

/// Requests whose end may wait for `on-complete`.
const COMPLETIONS: usize = 1024;
/// Requests that shadows may be behind.
const SHADOWS: usize = 256;
/// Instances of one plugin that wait for calls, where there is room for so many.
const WARM: usize = 16;

impl Host {
    /// Compiles, checks, starts and self-tests every plugin of the deployment that is not disabled.
    pub fn start(deployment: &Deployment, builtin: Builtin) -> Result<Self, StartError> {
        let parts = Beginning::new(deployment)?.parts(deployment, builtin)?;
        let host = Self::new(parts);
        if deployment.watch {
            host.watch(deployment)?;
        }
        Ok(host)
    }
}

/// What plugins are made with.
struct Beginning {
    workshop: Workshop,
    metrics: Metrics,
    counters: Counters,
    surroundings: Arc<OnceLock<Arc<dyn Surroundings>>>,
}

impl Beginning {
    fn new(deployment: &Deployment) -> Result<Self, StartError> {
        let keeper = Keeper::start().map_err(broken)?;
        let tick = {
            let keeper = keeper.clone();
            move || keeper.tick()
        };
        let engine = engine::serving(deployment.instances_max, tick).map_err(broken)?;
        // Half of the room is for calls that find no instance waiting.
        let share = deployment.instances_max as usize / 2 / deployment.plugins.len().max(1);
        let workshop = Workshop {
            engine,
            cache: Cache::open(deployment.cache_dir.as_deref()).map(Arc::new),
            keeper,
            warm: WARM.min(share),
        };
        Ok(Self {
            workshop,
            metrics: Metrics::default(),
            counters: Counters::default(),
            surroundings: Arc::default(),
        })
    }

    fn parts(self, deployment: &Deployment, builtin: Builtin) -> Result<Parts, StartError> {
        let plugins = deployment.plugins.iter().map(|settings| self.plugin(settings));
        let plugins = plugins.collect::<Result<Vec<_>, _>>()?;
        let scopes: Vec<Scope> = deployment.plugins.iter().map(|one| one.scope.clone()).collect();
        let shadows = Background::start("policy-shadows", SHADOWS).map_err(broken)?;
        Ok(Parts {
            chains: Chains::new(plugins, Scopes::new(&scopes), shadows),
            builtin,
            workshop: self.workshop,
            completions: Background::start("policy-completions", COMPLETIONS).map_err(broken)?,
            metrics: self.metrics,
            counters: self.counters,
            surroundings: self.surroundings,
            root: deployment.root.clone(),
        })
    }

    fn plugin(&self, settings: &Settings) -> Result<Arc<Plugin>, StartError> {
        let services = self.services(settings);
        let generation = self.generation(settings, services.renewed())?;
        let number = u64::from(generation.is_some());
        Ok(Arc::new(Plugin {
            current: ArcSwapOption::new(generation.map(Arc::new)),
            history: History { number, ..History::default() }.into(),
            metrics: self.metrics.plugin(&settings.name),
            hook_metrics: Hook::ALL.map(|hook| self.metrics.hook(&settings.name, hook)),
            services,
            calls: Gate::new(settings.limits.concurrency),
            recorder: recorder(settings)?,
            deploying: Default::default(),
            settings: settings.clone(),
        }))
    }

    fn services(&self, settings: &Settings) -> Services {
        Services {
            plugin: Arc::from(&*settings.name),
            headers: OnceLock::new(),
            kv: Arc::new(Store::new(settings.allow.kv_bytes)),
            counters: self.counters.clone(),
            log: Arc::new(LogGate::new(Instant::now())),
            texts: Texts::default(),
            surroundings: self.surroundings.clone(),
            instances: self.metrics.plugin(&settings.name).instances,
            since: Instant::now(),
        }
    }

    fn generation(
        &self,
        settings: &Settings,
        services: Services,
    ) -> Result<Option<Generation>, StartError> {
        if settings.mode == Mode::Disabled {
            return Ok(None);
        }
        let wrong = |error| StartError::Plugin {
            plugin: settings.name.clone(),
            file: settings.file.clone(),
            error,
        };
        let wasm = read(&settings.file).map_err(wrong)?;
        let made = background::wait(self.workshop.make(settings, services, &wasm));
        made.map_err(broken)?.map(Some).map_err(wrong)
    }
}

fn recorder(settings: &Settings) -> Result<Option<Recorder>, StartError> {
    let open = |record| {
        Recorder::open(record).map_err(|error| StartError::Record {
            plugin: settings.name.clone(),
            file: record.file.clone(),
            error,
        })
    };
    settings.record.as_ref().map(open).transpose()
}

/// The component in `file`.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(file).map_err(|error| LoadError::Read { file: file.to_owned(), error })
}

fn broken(error: impl std::fmt::Display) -> StartError {
    StartError::Engine(format!("{error:#}"))
}
