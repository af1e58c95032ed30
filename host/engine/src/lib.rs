//! Drystone's engine: from requests in tokens to batches for the ranks, and from answers to text.
//!
//! [`handle::Engine`] is the outside: submit, and read a ticket. Behind it one thread owns all
//! sequences, blocks and adapters and turns the main loop: receive, schedule, run, settle. Async
//! ends at the ticket's mailbox.

// The outside, on the threads of callers.
mod door;
pub mod handle;
pub mod load;
mod mailbox;
pub mod recent;

// The main loop and what it does in each turn.
mod ahead;
mod batch;
mod main_loop;
mod scheduler;
mod settle;

// What it owns: sequences, their output, blocks, adapters.
mod blocks;
mod loader;
mod prefix;
mod residents;
mod sequence;
mod stream;

pub mod metrics;
pub mod text;

#[cfg(test)]
mod tests;
