//! `[policy]`, `[[plugin]]` and `[[upstream]]` as typed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// `[policy]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Folder below which components may be loaded by path over HTTP.
    pub root: Option<PathBuf>,
    /// Folder of compiled components.
    pub cache_dir: Option<PathBuf>,
    /// Instances at once, over all plugins.
    pub instances_max: u32,
    /// Reload a plugin when its file changes.
    pub watch: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { root: None, cache_dir: None, instances_max: 256, watch: true }
    }
}

/// `[[plugin]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// Unique; the label in metrics.
    pub name: String,
    /// The component.
    pub source: FileSource,
    /// Hooks to answer; all that it exports when absent.
    pub hooks: Option<Vec<String>>,
    /// Which requests it sees.
    #[serde(default, rename = "match")]
    pub scope: Match,
    /// `enforce`, `shadow` or `disabled`.
    #[serde(default = "enforce")]
    pub mode: String,
    /// One answer for all hooks, or one a hook.
    pub on_error: Option<OnError>,
    /// `per-request` or `pooled`.
    #[serde(default = "per_request")]
    pub isolation: String,
    /// Bounds of one call and of all.
    #[serde(default)]
    pub limits: Limits,
    /// When it is set aside.
    #[serde(default)]
    pub breaker: Breaker,
    /// What it may ask of the host.
    #[serde(default)]
    pub allow: Allow,
    /// Its own configuration.
    #[serde(default)]
    pub config: toml::Table,
    /// Keeps what it was asked and what it said.
    pub record: Option<Record>,
}

fn enforce() -> String {
    "enforce".to_owned()
}

fn per_request() -> String {
    "per-request".to_owned()
}

/// `source = { file = "...", sha256 = "..." }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// The component.
    pub file: PathBuf,
    /// What it must hash to.
    pub sha256: Option<String>,
}

/// `match = { ... }`: patterns with `*`; absent matches all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// Tenants.
    pub tenants: Option<Vec<String>>,
    /// Models as requests name them.
    pub models: Option<Vec<String>>,
    /// `chat`, `completion`, `other`.
    pub routes: Option<Vec<String>>,
}

/// `on_error = "closed"` or `on_error = { on-chunk = "open" }`
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OnError {
    /// For all hooks.
    All(String),
    /// By hook.
    ByHook(BTreeMap<String, String>),
}

/// `limits = { ... }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Time of one call.
    pub cpu_ms: u32,
    /// Linear memory of one instance.
    pub memory_mib: u32,
    /// Answers of one call.
    pub output_kib: u32,
    /// Bytes that one call may pass to host functions.
    pub host_copy_kib: u32,
    /// Calls at once.
    pub concurrency: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { cpu_ms: 5, memory_mib: 32, output_kib: 64, host_copy_kib: 1024, concurrency: 64 }
    }
}

/// `breaker = { ... }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Failures within the window that set a plugin aside; 0 never does.
    pub failures: u32,
    /// Length of the window.
    pub window_s: u32,
    /// Time until one call tries it again.
    pub cooldown_s: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, window_s: 10, cooldown_s: 5 }
    }
}

/// `allow = { ... }`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// Request headers by name.
    pub headers: Vec<String>,
    /// Texts of the request.
    pub messages: bool,
    /// Work on texts.
    pub text: bool,
    /// State that outlives an instance.
    pub kv_kib: u32,
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
    /// A WASI world with nothing in it, for guests whose runtime asks for one.
    pub wasi: bool,
}

/// `record = { ... }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Lines of JSON are added to it.
    pub file: PathBuf,
    /// Put hashes in place of texts, keys and header values.
    #[serde(default = "yes")]
    pub redact: bool,
    /// Recording stops at this size.
    #[serde(default = "record_mib")]
    pub mib_max: u32,
}

fn yes() -> bool {
    true
}

fn record_mib() -> u32 {
    64
}

/// `[[upstream]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Unique among replicas.
    pub name: String,
    /// `http://host:port`
    pub url: String,
    /// File whose first line is the key to send.
    pub key_file: Option<PathBuf>,
    /// Requests at once.
    #[serde(default = "upstream_concurrency")]
    pub concurrency: u32,
}

fn upstream_concurrency() -> u32 {
    256
}
