//! The host of Wasm policies: loads plugins, asks them, and bounds what they may cost.

pub mod bindings;
pub mod breaker;
pub mod failure;
pub mod harness;
pub mod host;
pub mod json;
pub mod load;
pub mod metrics;
pub mod record;
pub mod scope;
pub mod state;
pub mod watch;

mod background;
mod bounds;
mod cache;
mod chain;
mod check;
mod deploy;
mod edits;
mod engine;
mod gate;
mod generation;
mod grants;
mod guest;
mod hooks;
mod imports;
mod inspect;
mod instance;
mod keeper;
mod plugin;
mod policy;
mod pool;
mod question;
mod quiet;
mod recipe;
mod schema;
mod start;
mod surface;
mod tail;

#[cfg(test)]
mod tests;
