//! TOML deployments: raw text in, checked settings out.
//!
//! The only crate that reads TOML or the environment. [`settings`] is what the rest of the host
//! sees; every value in it has been checked.

pub mod settings;
