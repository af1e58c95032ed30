//! Why a group did not start.

use contract::tensor::DType;

/// A group that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model's weights are not there or not right.
    #[error(transparent)]
    Model(#[from] model::error::Error),
    /// The model's sizes do not divide.
    #[error("tensor = {ranks} does not suit this model: {why}")]
    Indivisible {
        /// Ranks asked for.
        ranks: usize,
        /// What does not divide.
        why: String,
    },
    /// What was asked for is not in this build or on this machine.
    #[error("{0}")]
    Backend(String),
    /// The KV cache has no room.
    #[error(
        "engine.kv_cache_gib: {bytes} bytes hold not one block: {block_tokens} tokens in {dtype} \
         need {block_bytes} bytes over all ranks; \"auto\" or {:.3} and more would do",
        at_least(*block_bytes)
    )]
    Cache {
        /// Bytes configured.
        bytes: u64,
        /// Bytes of one block over all ranks.
        block_bytes: u64,
        /// Positions in a block.
        block_tokens: usize,
        /// Element type of the cache.
        dtype: DType,
    },
    /// The KV cache is smaller than one sequence of the length asked for.
    #[error(
        "model.context_max = {context}: a KV cache of {:.3} GiB holds {tokens} tokens; \
         engine.kv_cache_gib = {:.3}, \"auto\", or a context_max of {tokens} would do",
        gib(*bytes), at_least(*needed)
    )]
    Context {
        /// Positions asked for.
        context: usize,
        /// Bytes configured.
        bytes: u64,
        /// Positions that they hold.
        tokens: usize,
        /// Bytes that would do.
        needed: u64,
    },
    /// The machine's memory has no room for a KV cache beside the weights.
    #[error(
        "this machine has {:.2} GiB of memory available, and weights need {:.2}: that leaves {:.2} \
         for the KV cache of a replica (a quarter of what is left, 4 GiB at most), and {tokens} \
         tokens need {:.2}; a smaller model.context_max, engine.kv_cache_gib as a number, or more \
         memory would do",
        gib(*available), gib(*weights), gib(*cache), gib(*needed)
    )]
    Host {
        /// Bytes available.
        available: u64,
        /// Bytes of the weights of all replicas.
        weights: u64,
        /// Bytes for the cache of one.
        cache: u64,
        /// Bytes that would do.
        needed: u64,
        /// Positions that there has to be room for.
        tokens: usize,
    },
    /// The machine does not say how much memory it has.
    #[error(
        "engine.kv_cache_gib = \"auto\": this system does not say how much memory is available; a \
         number of GiB would do"
    )]
    UnknownHost,
    /// Processes that are launched together do not find each other.
    #[error("cannot {what} {address}, where the processes of this launch meet: {why}")]
    Meeting {
        /// What was tried.
        what: &'static str,
        /// The leader's address.
        address: String,
        /// Why not.
        why: String,
    },
    /// A process that was to be launched has not come.
    #[error("process {process} of this launch did not come within {seconds} s")]
    Absent {
        /// Which one.
        process: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A rank could not be built.
    #[error("rank {rank} did not start: {message}")]
    Rank {
        /// Which rank.
        rank: usize,
        /// What it said.
        message: String,
    },
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// GiB with three decimals that are no less.
fn at_least(bytes: u64) -> f64 {
    (gib(bytes) * 1e3).ceil() / 1e3
}
