//! Rank threads, and the group that makes them one executor.

mod backend;
mod cache;
pub mod error;
pub mod follow;
mod gpus;
pub mod group;
mod host;
mod remote;
mod source;
mod worker;
mod wire;
