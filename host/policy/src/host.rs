//! The host: all plugins of a server, as the gateway asks them and as operators change them.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use config::settings::Policy;
use contract::policy::builtin::Builtin;
use contract::policy::hook::Hook;
use contract::policy::replica::Surroundings;
use contract::policy::subject::Subject;
use prometheus_client::registry::Registry;

use crate::background::Background;
use crate::chain::Chains;
use crate::generation::Workshop;
use crate::load::LoadError;
use crate::metrics::Metrics;
use crate::state::counters::Counters;
use crate::watch::{Watch, watch};

/// Why a server cannot start with its plugins.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A plugin cannot be used.
    #[error("plugin {plugin:?} ({}): {error}", file.display())]
    Plugin {
        /// Its name.
        plugin: String,
        /// Its component.
        file: PathBuf,
        /// What is wrong.
        error: LoadError,
    },
    /// Its calls cannot be recorded.
    #[error("plugin {plugin:?}: its calls cannot be recorded in {}: {error}", file.display())]
    Record {
        /// Its name.
        plugin: String,
        /// Where they should be.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Their files cannot be watched.
    #[error("the files of plugins cannot be watched: {0}")]
    Watch(String),
    /// The engine did not start.
    #[error("the engine of policies does not start: {0}")]
    Engine(String),
}

/// All plugins of a server. Clones are the same host.
#[derive(Clone)]
pub struct Host(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) chains: Arc<Chains>,
    pub(crate) builtin: Builtin,
    pub(crate) workshop: Workshop,
    /// Where `on-complete` is asked.
    pub(crate) completions: Background,
    pub(crate) metrics: Metrics,
    pub(crate) counters: Counters,
    pub(crate) surroundings: Arc<OnceLock<Arc<dyn Surroundings>>>,
    /// Below it lie components that may be loaded by path.
    pub(crate) root: Option<PathBuf>,
    headers: RwLock<Arc<[String]>>,
    /// Looks at the deployment's files.
    watch: OnceLock<Watch>,
}

/// The parts of a host.
pub(crate) struct Parts {
    pub(crate) chains: Chains,
    pub(crate) builtin: Builtin,
    pub(crate) workshop: Workshop,
    pub(crate) completions: Background,
    pub(crate) metrics: Metrics,
    pub(crate) counters: Counters,
    pub(crate) surroundings: Arc<OnceLock<Arc<dyn Surroundings>>>,
    pub(crate) root: Option<PathBuf>,
}

impl Host {
    pub(crate) fn new(parts: Parts) -> Self {
        let host = Self(Arc::new(Inner {
            chains: Arc::new(parts.chains),
            builtin: parts.builtin,
            workshop: parts.workshop,
            completions: parts.completions,
            metrics: parts.metrics,
            counters: parts.counters,
            surroundings: parts.surroundings,
            root: parts.root,
            headers: RwLock::new(Arc::new([])),
            watch: OnceLock::new(),
        }));
        host.0.refresh();
        host
    }

    /// Adds what plugins did, and what they count themselves.
    pub fn register(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
        self.0.counters.register(registry);
    }

    /// Reloads a plugin whenever its file changes. What cannot be used leaves the old one.
    pub(crate) fn watch(&self, deployment: &Policy) -> Result<(), StartError> {
        let files = deployment.plugins.iter().map(|plugin| plugin.file.clone()).collect();
        let host = Arc::downgrade(&self.0);
        let changed = move |index: usize| {
            if let Some(host) = host.upgrade() {
                host.reload(&host.chains.plugins[index]);
            }
        };
        let watch = watch(files, changed).map_err(|error| StartError::Watch(error.to_string()))?;
        // It is called once, from `start`.
        let _ = self.0.watch.set(watch);
        Ok(())
    }

    /// Lets plugins look at `surroundings`. Before this there are no adapters, no replicas and no
    /// tokens; only the first call counts.
    pub fn surround(&self, surroundings: Arc<dyn Surroundings>) {
        // A server has one gateway, which says it once.
        let _ = self.0.surroundings.set(surroundings);
    }
}

impl Inner {
    /// Takes into account that a plugin has another generation.
    pub(crate) fn refresh(&self) {
        self.chains.refresh();
        let mut names = Vec::new();
        for plugin in &self.chains.plugins {
            let generation = plugin.current.load();
            names.extend(generation.iter().flat_map(|one| one.headers()).cloned());
        }
        names.sort_unstable();
        names.dedup();
        *self.headers.write().unwrap_or_else(PoisonError::into_inner) = Arc::from(names);
    }

    /// What tells the adapters that a policy may name for `subject`; `None` where it may name
    /// others too, for another policy to find.
    pub(crate) fn served(&self, subject: &Subject) -> Option<Arc<dyn Surroundings>> {
        let finders = self.chains.about(Hook::ResolveAdapter, subject);
        let none_finds = self.chains.enforced(finders).next().is_none();
        self.surroundings.get().filter(|_| none_finds).cloned()
    }

    /// Request headers that some plugin may read.
    pub(crate) fn headers(&self) -> Arc<[String]> {
        self.headers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
