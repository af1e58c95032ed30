//! Checked settings of one deployment, one struct a section.

mod policy;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use contract::tensor::DType;

pub use crate::settings::policy::{
    Allow, Breaker, Isolation, Limits, Mode, Plugin, Policy, Record, Scope, Upstream,
};

/// A whole deployment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[model]`
    pub model: Model,
    /// `[parallel]`
    pub parallel: Parallel,
    /// `[engine]`
    pub engine: Engine,
    /// `[adapters]` and every `[[adapter]]`
    pub adapters: Adapters,
    /// `[policy]` and every `[[plugin]]`
    pub policy: Policy,
    /// `[[upstream]]`
    pub upstreams: Vec<Upstream>,
}

/// The HTTP face.
#[derive(Clone, Debug)]
pub struct Server {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Keys that callers may use; empty leaves the server open (loopback only).
    pub api_keys: Vec<ApiKey>,
    /// Keys that open `/admin` and the loading of adapters; empty leaves those closed.
    pub admin_keys: Vec<ApiKey>,
    /// How long running requests may go on after SIGTERM.
    pub drain: Duration,
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// A request that takes longer is ended.
    pub request_timeout: Duration,
}

/// A key and the tenant it stands for.
#[derive(Clone)]
pub struct ApiKey {
    /// Tenant name, for logs and quotas.
    pub tenant: String,
    /// The secret; never logged.
    pub key: String,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({}, ***)", self.tenant)
    }
}

/// Which base model, and how its weights come.
#[derive(Clone, Debug)]
pub struct Model {
    /// Hugging Face folder.
    pub path: PathBuf,
    /// Name in the API; the folder's name unless configured.
    pub name: String,
    /// Element type of weights and KV cache; `None` takes the checkpoint's.
    pub dtype: Option<DType>,
    /// Where weights come from.
    pub load: Load,
    /// Longest sequence in tokens; `None` takes the model's own limit.
    pub context_max: Option<usize>,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The folder's safetensors.
    Weights,
    /// Seeded random numbers in the shape of the folder's `config.json`.
    Dummy {
        /// Same seed, same weights.
        seed: u64,
    },
}

/// Ranks and replicas.
#[derive(Clone, Debug)]
pub struct Parallel {
    /// What computes.
    pub backend: Backend,
    /// Ranks of one replica.
    pub tensor: usize,
    /// Local replicas.
    pub replicas: usize,
    /// Threads of one CPU rank; `None` shares the machine's cores among the ranks.
    pub threads: Option<usize>,
    /// How ranks talk.
    pub comm: CommKind,
    /// Device of each rank, replica after replica; may repeat. Empty counts up from 0.
    pub devices: Vec<usize>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// CUDA where it is found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// How ranks talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommKind {
    /// What suits the backend.
    Auto,
    /// Shared host memory.
    Threads,
    /// Kernels over device memory mapped between the ranks of one process.
    Peer,
    /// NCCL.
    Nccl,
}

/// The engine's bounds.
#[derive(Clone, Debug)]
pub struct Engine {
    /// KV cache over all ranks, in bytes; `None` takes what the ranks have room for.
    pub kv_cache_bytes: Option<u64>,
    /// Positions in a block.
    pub block_tokens: usize,
    /// Rows in a step at most.
    pub batch_tokens_max: usize,
    /// Running sequences at most.
    pub sequences_max: usize,
    /// Waiting sequences at most; beyond them callers get 429.
    pub queue_max: usize,
    /// Whether finished blocks are kept for later prompts that start alike.
    pub prefix_cache: bool,
}

/// Adapters and where they may lie.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// Every PEFT folder in it is served under its folder's name.
    pub dir: Option<PathBuf>,
    /// Adapters named one by one.
    pub named: Vec<NamedAdapter>,
    /// Folder below which adapters may be loaded while the server runs; `None` forbids it.
    pub resolve_root: Option<PathBuf>,
    /// Generations on the device at once.
    pub slots_max: usize,
    /// Host memory for generations that wait for a slot, in bytes.
    pub host_bytes: u64,
    /// How plain adapters are cut.
    pub plain_sharding: PlainSharding,
}

/// One `[[adapter]]`.
#[derive(Clone, Debug)]
pub struct NamedAdapter {
    /// Name in the API.
    pub name: String,
    /// PEFT folder.
    pub path: PathBuf,
    /// Loaded at start and never evicted.
    pub pinned: bool,
}

/// How plain adapters are cut across ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainSharding {
    /// The factor that does not follow the base layer is held whole on every rank; no collective.
    Replicated,
    /// S-LoRA's scheme: both factors cut, four collectives a layer (arXiv 2311.03285, section 6).
    FullySharded,
}
