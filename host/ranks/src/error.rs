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
        "a KV cache of {bytes} bytes holds not one block: {block_tokens} tokens in {dtype} need \
         {block_bytes} bytes over all ranks"
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
