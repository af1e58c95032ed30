//! PEFT adapters: from a folder on disk to local pairs that ranks can compute with.
//!
//! A [`catalogue::Catalogue`] knows the folders and loads them, on any thread; a
//! [`residency::Residency`] decides, on the engine's thread, which of them lie in device slots and
//! in host memory. A [`root::Root`] bounds where adapters may come from while the server runs.
//! Nothing here touches a device.
//!
//! Loading is one pass: [`manifest`] says what the adapter is, [`weights`] what tensors there are,
//! [`plan`] whether both agree with each other and the base, [`cut`] what each rank takes, and
//! [`compile`] reads, names and cuts.

pub mod catalogue;
pub mod compile;
pub mod cut;
pub mod digest;
pub mod error;
pub mod manifest;
pub mod module;
pub mod patterns;
pub mod plan;
pub mod residency;
pub mod root;
pub mod site;
pub mod weights;

#[cfg(test)]
mod tests;
