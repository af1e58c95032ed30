//! What the host keeps for plugins, beyond one instance.

pub mod counters;
pub mod kv;
pub mod text;
