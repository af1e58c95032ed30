//! What all routes share: settings, policy, and the replicas once they are loaded.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use config::settings::Server;
use contract::counts::CollectiveCounts;
use contract::policy::Policy;
use contract::policy::builtin::Builtin;
use contract::policy::deploy::Plugins;
use contract::policy::subject::Tenant;
use engine::handle::{Engine, Root};
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use crate::adapters::Loads;
use crate::error::ApiError;
use crate::places::Places;
use crate::replicas::Replicas;

/// The state of a server. It may be served before there is a replica: routes that need one answer
/// 503 until [`App::open`].
pub struct App {
    /// `[server]`
    pub settings: Server,
    /// Decides who may call, and where a model name leads.
    pub policy: Arc<dyn Policy>,
    /// The plugins behind the policy, where there are some.
    pub(crate) plugins: Option<Arc<dyn Plugins>>,
    /// Who holds an admin key.
    pub(crate) admins: Builtin,
    /// What is measured whether there is a replica or not.
    pub(crate) registry: Registry,
    /// The base model's name in the API.
    pub model_name: String,
    /// When the server started, in seconds since 1970.
    pub(crate) created: u64,
    /// Bounds the large bodies that are parsed and tokenized at once.
    pub(crate) heavy: Arc<Semaphore>,
    /// Open calls of tenants that may have so many and no more.
    pub(crate) places: Places,
    /// How adapters come while the server runs.
    pub(crate) loads: Loads,
    replicas: OnceLock<Replicas>,
    /// Somebody said that callers may come.
    announced: AtomicBool,
    draining: AtomicBool,
    names: Names,
}

/// One engine and what is measured about it.
pub struct Replica {
    /// Takes requests.
    pub engine: Engine,
    /// Exported by purpose.
    pub counts: Arc<CollectiveCounts>,
    /// Where the engine registered its metrics.
    pub registry: Registry,
}

impl App {
    /// A server without a replica.
    pub fn new(settings: Server, policy: Arc<dyn Policy>, model_name: String) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let admins = &settings.admin_keys;
        let admins = admins.iter().map(|key| (key.key.clone(), Tenant(key.tenant.clone())));
        Self {
            admins: Builtin::new(&model_name, admins),
            plugins: None,
            registry: Registry::default(),
            settings,
            policy,
            model_name,
            created: unix_seconds(),
            heavy: Arc::new(Semaphore::new(cores)),
            places: Places::default(),
            loads: Loads::default(),
            replicas: OnceLock::new(),
            announced: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            names: Names::new(),
        }
    }

    /// The same server, whose operators may change `plugins`; `registry` has what those count.
    pub fn with_plugins(self, plugins: Arc<dyn Plugins>, registry: Registry) -> Self {
        Self { plugins: Some(plugins), registry, ..self }
    }

    /// The same server, whose operators and policies may load adapters from below `root`.
    pub fn with_adapter_root(self, root: Root) -> Self {
        Self { loads: Loads::below(root), ..self }
    }

    /// Is ready from now on, for whoever asks `/ready`.
    pub fn announce(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    /// Whether it was announced that callers may come.
    pub(crate) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// Takes requests; a second call changes nothing.
    pub fn open(&self, replicas: Replicas) {
        let _ = self.replicas.set(replicas);
    }

    /// The replicas that take new requests.
    pub(crate) fn replicas(&self) -> Result<&Replicas, ApiError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::Draining);
        }
        match self.replicas.get() {
            None => Err(ApiError::Starting),
            Some(replicas) if replicas.is_dead() => Err(ApiError::Dead),
            Some(replicas) => Ok(replicas),
        }
    }

    /// The replicas whether they take requests or not, for those who only look.
    pub(crate) fn loaded(&self) -> Option<&Replicas> {
        self.replicas.get()
    }

    /// Takes nothing new from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        if let Some(replicas) = self.replicas.get() {
            replicas.drain();
        }
    }

    /// A name for a request that brings none; no two are equal.
    pub(crate) fn fresh_name(&self) -> String {
        self.names.fresh()
    }

    /// A number that nobody can foresee.
    pub(crate) fn random(&self) -> u64 {
        self.names.random()
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Makes names that are unique over restarts without asking the system each time.
struct Names {
    hasher: RandomState,
    next: AtomicU64,
}

impl Names {
    fn new() -> Self {
        Self { hasher: RandomState::new(), next: AtomicU64::new(0) }
    }

    fn random(&self) -> u64 {
        self.hasher.hash_one(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn fresh(&self) -> String {
        format!("{:016x}", self.random())
    }
}
