//! Drystone's engine: from requests in tokens to batches for the ranks, and from answers to text.
//!
//! [`handle::Engine`] is the outside: submit, and read a ticket. Behind it one thread owns all
//! sequences, blocks and adapters and turns [`main_loop`]: receive, schedule, run, settle. Async
//! ends at the ticket's [`mailbox`].

mod batch;
mod blocks;
pub mod handle;
mod door;
pub mod load;
mod loader;
mod mailbox;
mod main_loop;
pub mod metrics;
mod prefix;
mod residents;
mod scheduler;
mod sequence;
mod settle;
mod stream;
#[cfg(test)]
mod tests;
pub mod text;
