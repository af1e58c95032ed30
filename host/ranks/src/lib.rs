//! Rank threads, and the group that makes them one executor.

mod backend;
pub mod error;
pub mod follow;
mod gpus;
pub mod group;
mod remote;
mod source;
mod worker;
mod wire;
