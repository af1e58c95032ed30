//! PEFT adapters: from a folder on disk to local pairs that ranks can compute with.
//!
//! A [`catalogue::Catalogue`] knows the folders and loads them, on any thread; a
//! [`residency::Residency`] decides, on the engine's thread, which of them lie in device slots and
//! in host memory. Nothing here touches a device.

pub mod catalogue;
pub mod residency;
