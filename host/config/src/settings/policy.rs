//! Plugins, what bounds them, and upstream servers.

use std::path::PathBuf;
use std::time::Duration;

use contract::policy::hook::{Hook, OnError};
use contract::policy::subject::Route;

/// `[policy]` and every `[[plugin]]`.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// In the order of the deployment, which is the order of every chain. At most 64.
    pub plugins: Vec<Plugin>,
    /// Folder below which components may be loaded by path over HTTP; `None` forbids it.
    pub root: Option<PathBuf>,
    /// Folder of compiled components; `None` takes one in the user's cache.
    pub cache_dir: Option<PathBuf>,
    /// Instances at once, over all plugins.
    pub instances_max: u32,
    /// Reload a plugin when its file changes.
    pub watch: bool,
}

/// One `[[plugin]]`.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Lower-case letters, digits and dashes; unique.
    pub name: String,
    /// The component.
    pub file: PathBuf,
    /// What it must hash to, in lower-case hex.
    pub sha256: Option<String>,
    /// Hooks to answer; `None`: all that it exports.
    pub hooks: Option<Vec<Hook>>,
    /// Which requests it sees.
    pub scope: Scope,
    /// Whether its answers count.
    pub mode: Mode,
    /// By [`Hook`] as an index.
    pub on_error: [OnError; Hook::ALL.len()],
    /// Who shares an instance.
    pub isolation: Isolation,
    /// Bounds of one call and of all.
    pub limits: Limits,
    /// When it is set aside.
    pub breaker: Breaker,
    /// What it may ask of the host.
    pub allow: Allow,
    /// Its own configuration, an object.
    pub config: serde_json::Value,
    /// Keeps what it was asked and what it said.
    pub record: Option<Record>,
}

/// Which requests a plugin sees: patterns with `*`; `None` matches all.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Tenants. `authorize` comes before there is one, so it minds routes alone.
    pub tenants: Option<Vec<String>>,
    /// Models as requests name them.
    pub models: Option<Vec<String>>,
    /// APIs.
    pub routes: Option<Vec<Route>>,
}

/// Whether a plugin's answers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do.
    Enforce,
    /// It runs, and differences are counted.
    Shadow,
    /// It does not run.
    Disabled,
}

/// Who shares an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Every call has its own.
    PerRequest,
    /// Calls follow each other in one, until one fails.
    Pooled,
}

/// Bounds of one call and of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time of one call.
    pub cpu: Duration,
    /// Linear memory of one instance.
    pub memory_bytes: usize,
    /// Texts in the answer of one call.
    pub output_bytes: usize,
    /// What one call may pass to the host.
    pub host_copy_bytes: usize,
    /// Calls at once.
    pub concurrency: usize,
}

/// When a plugin is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures within the window that do it; 0 never does.
    pub failures: u32,
    /// Length of the window.
    pub window: Duration,
    /// Time until one call tries it again.
    pub cooldown: Duration,
}

/// What a plugin may ask of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// Request headers, in lower case.
    pub headers: Vec<String>,
    /// Texts of the request.
    pub messages: bool,
    /// Work on texts.
    pub text: bool,
    /// Bytes of state that outlives an instance; 0 denies it.
    pub kv_bytes: usize,
    /// The time.
    pub clock: bool,
    /// Random numbers.
    pub random: bool,
    /// Counters.
    pub metrics: bool,
    /// The table of adapters.
    pub adapters: bool,
    /// The table of replicas.
    pub replicas: bool,
    /// A WASI world with nothing in it.
    pub wasi: bool,
}

/// Where a plugin's calls are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Lines of JSON are added to it.
    pub file: PathBuf,
    /// Put hashes in place of texts, keys and header values.
    pub redact: bool,
    /// Recording stops at this size.
    pub bytes_max: u64,
}

/// One `[[upstream]]`.
#[derive(Clone)]
pub struct Upstream {
    /// Unique among replicas.
    pub name: String,
    /// `http://host:port`, without a slash at the end.
    pub url: String,
    /// The key to send; never logged.
    pub key: Option<String>,
    /// Requests at once.
    pub concurrency: usize,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({}, {})", self.name, self.url)
    }
}
