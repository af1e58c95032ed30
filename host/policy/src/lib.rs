//! The host of Wasm policies: loads plugins, asks them, and bounds what they may cost.

pub mod bindings;
pub mod breaker;
pub mod metrics;
pub mod record;
pub mod scope;
pub mod state;
pub mod watch;
