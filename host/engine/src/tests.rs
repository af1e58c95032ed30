//! Tests of the whole engine over a scripted executor.

/// Adapters: mixed, evicted, refused, gone.
mod adapters;
/// Steps that are started while the one before is in flight.
mod ahead;
/// What ends an engine or holds it up, and what callers are told then.
mod ends;
/// An engine whose ranks answer from a script.
mod fixture;
/// One sequence: tokens, text, stops, logprobs.
mod generation;
/// Many sequences: queue, blocks, cancellation, readers of all speeds.
mod sharing;
