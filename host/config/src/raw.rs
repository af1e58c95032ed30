//! A deployment exactly as typed: sections, keys and defaults, nothing checked.

mod policy;

use std::path::PathBuf;

use serde::Deserialize;

pub use crate::raw::policy::{
    Allow, Breaker, FileSource, Limits, Match, OnError, Plugin, Policy, Record, Upstream,
};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// `[server]`
    #[serde(default)]
    pub server: Server,
    /// `[model]`
    pub model: Model,
    /// `[parallel]`
    #[serde(default)]
    pub parallel: Parallel,
    /// `[engine]`
    #[serde(default)]
    pub engine: Engine,
    /// `[adapters]`
    #[serde(default)]
    pub adapters: Adapters,
    /// `[[adapter]]`
    #[serde(default)]
    pub adapter: Vec<Adapter>,
    /// `[policy]`
    #[serde(default)]
    pub policy: Policy,
    /// `[[plugin]]`
    #[serde(default)]
    pub plugin: Vec<Plugin>,
    /// `[[upstream]]`
    #[serde(default)]
    pub upstream: Vec<Upstream>,
}

/// `[server]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// `address:port`.
    pub listen: String,
    /// TOML file of keys.
    pub api_keys_file: Option<PathBuf>,
    /// TOML file of keys that open `/admin` and the loading of adapters.
    pub admin_keys_file: Option<PathBuf>,
    /// Seconds that running requests get after SIGTERM.
    pub drain_s: u64,
    /// Largest request body.
    pub body_mib_max: usize,
    /// Longest request.
    pub request_timeout_s: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            api_keys_file: None,
            admin_keys_file: None,
            drain_s: 30,
            body_mib_max: 8,
            request_timeout_s: 600,
        }
    }
}

/// `[model]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Hugging Face folder.
    pub path: PathBuf,
    /// Name in the API.
    pub name: Option<String>,
    /// `bf16`, `f16` or `f32`.
    pub dtype: Option<String>,
    /// `weights` or `dummy`.
    #[serde(default = "weights")]
    pub load: String,
    /// Seed of dummy weights.
    #[serde(default)]
    pub seed: u64,
    /// Longest sequence in tokens.
    pub context_max: Option<usize>,
}

fn weights() -> String {
    "weights".to_owned()
}

/// `[parallel]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parallel {
    /// `auto`, `cpu` or `cuda`.
    pub backend: String,
    /// Ranks of one replica.
    pub tensor: usize,
    /// Local replicas.
    pub replicas: usize,
    /// Threads of one CPU rank.
    pub threads: Option<usize>,
    /// `auto`, `threads`, `peer` or `nccl`.
    pub comm: String,
    /// Device of each rank.
    pub devices: Vec<usize>,
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            backend: "auto".to_owned(),
            tensor: 1,
            replicas: 1,
            threads: None,
            comm: "auto".to_owned(),
            devices: Vec::new(),
        }
    }
}

/// `[engine]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// KV cache over all ranks.
    pub kv_cache_gib: Gib,
    /// Positions in a block.
    pub block_tokens: usize,
    /// Rows in a step at most.
    pub batch_tokens_max: usize,
    /// Running sequences at most.
    pub sequences_max: usize,
    /// Waiting sequences at most.
    pub queue_max: usize,
    /// Keep finished blocks for later prompts.
    pub prefix_cache: bool,
}

/// A size that may be left to the server.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number of GiB or \"auto\" would do")]
pub enum Gib {
    /// So many GiB.
    Number(f64),
    /// `auto`.
    Word(String),
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            kv_cache_gib: Gib::Word("auto".to_owned()),
            block_tokens: 16,
            batch_tokens_max: 2048,
            sequences_max: 256,
            queue_max: 1024,
            prefix_cache: true,
        }
    }
}

/// `[adapters]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adapters {
    /// Folder of PEFT folders.
    pub dir: Option<PathBuf>,
    /// Folder below which adapters may be loaded while the server runs.
    pub resolve_root: Option<PathBuf>,
    /// Generations on the device at once.
    pub slots_max: usize,
    /// Host memory for generations.
    pub host_gib: f64,
    /// `replicated` or `fully-sharded`.
    pub plain_sharding: String,
}

impl Default for Adapters {
    fn default() -> Self {
        Self {
            dir: None,
            resolve_root: None,
            slots_max: 64,
            host_gib: 8.0,
            plain_sharding: "replicated".to_owned(),
        }
    }
}

/// `[[adapter]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Name in the API.
    pub name: String,
    /// PEFT folder.
    pub path: PathBuf,
    /// Loaded at start, never evicted.
    #[serde(default)]
    pub pinned: bool,
}
