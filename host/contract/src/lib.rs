//! Plain data and the traits that both halves of the host agree on.
//!
//! Above this crate are the engine and the gateway, which know text, tenants and time; below it
//! are the ranks, which know devices. Neither sees the other: they meet in [`step`]. There is no
//! IO, no async and no thread here.

pub mod tensor;
pub mod base;
pub mod adapter;
pub mod sampling;
pub mod step;
pub mod request;
pub mod counts;
pub mod policy;
