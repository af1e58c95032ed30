//! The numbers that decide which replica runs a request.

use serde::{Deserialize, Serialize};

/// How busy the server is, over all local replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Sequences that run.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Sequences that may wait.
    pub queue_max: u32,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_used: f32,
}

/// What a request will take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Tokens of all prompts.
    pub prompt_tokens: u32,
    /// Tokens to generate at most.
    pub max_tokens: u32,
    /// Same number, same tenant and adapter.
    pub affinity: u64,
}

/// One replica that could run a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Replica {
    /// Sequences that run.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Share of its KV cache in use, 0 to 1.
    pub kv_used: f32,
    /// The adapter is in a slot already; true for the base.
    pub adapter_resident: bool,
    /// Share of the prompt that its prefix cache is expected to hold, 0 to 1.
    pub prefix_hit: f32,
    /// A local engine.
    pub local: bool,
}

/// A replica's name and state, for plugins and operators that list them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaRow {
    /// `local-0`, or the upstream's name.
    pub name: String,
    /// Takes requests.
    pub healthy: bool,
    /// Sequences that run.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
}

/// An adapter's name and state, likewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterRow {
    /// The name it is served under.
    pub name: String,
    /// Largest lora rank.
    pub lora_rank: u32,
    /// In a slot of a local replica.
    pub resident: bool,
}

/// What policies may look at around them. The gateway has it once a replica is up.
pub trait Surroundings: Send + Sync {
    /// Adapters by name.
    fn adapters(&self) -> Vec<AdapterRow>;
    /// Whether an adapter is served under `name`.
    fn adapter_exists(&self, name: &str) -> bool;
    /// Replicas in their order.
    fn replicas(&self) -> Vec<ReplicaRow>;
    /// Tokens of a text.
    fn count_tokens(&self, text: &str) -> u32;
}
