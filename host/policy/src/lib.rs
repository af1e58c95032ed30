//! The host of Wasm policies: loads plugins, asks them, and bounds what they may cost.

pub mod bindings;
