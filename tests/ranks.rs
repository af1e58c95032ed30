//! What the ranks compute: against PEFT and transformers, alone and in a batch, cut in any way.

/// Every position's logprobs of every base and adapter, as PEFT has them, at every number of ranks.
mod goldens;

/// The CUDA backend in a whole model.
mod cuda;

/// A step started behind one in flight draws what it would have drawn after it.
mod ahead;

/// An adapter merged into the base's weights computes what the applied adapter computes.
mod merged;

/// A row depends on its own sequence alone: not on its batch, its chunks or its block table.
mod batching;

/// How many collectives a step costs, and for what.
mod collectives;

/// Checkpoints that are not what they should be, and dummy weights.
mod weights;

/// What cannot be done is refused, and a rank that fails ends its group with its message.
mod failures;

/// The tiny models and adapters of `fixtures/goldens`, and groups that run them.
pub mod fixture;

/// Pieces of sequences as batches, and the logprobs that a group answers with.
mod feed;
