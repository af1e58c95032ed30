//! Rank threads, and the group that makes them one executor.

mod backend;
pub mod error;
mod gpus;
pub mod group;
mod source;
mod worker;
