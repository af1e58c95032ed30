//! What a Drystone policy plugin is written with.
//!
//! A plugin is a type that implements [`Policy`] under the attribute [`policy`]. It writes down the
//! hooks that it wants to answer; its component exports those and no others.
//!
//! ```
//! use drystone_sdk::prelude::*;
//!
//! #[config]
//! struct Config {
//!     /// Who is served by the adapter `gold`.
//!     gold: Vec<String>,
//! }
//!
//! struct Router(Config);
//!
//! #[policy]
//! impl Policy for Router {
//!     type Config = Config;
//!
//!     fn new(config: Config, _setup: &Setup) -> Result<Self, String> {
//!         Ok(Self(config))
//!     }
//!
//!     fn select_adapter(&self, request: &Request) -> Selection {
//!         match self.0.gold.contains(&request.tenant) {
//!             true => Selection::Adapter("gold".into()),
//!             false => Selection::Named,
//!         }
//!     }
//! }
//! ```
//!
//! What the plugin asks of the server is in [`host`]; a plugin imports what it calls and nothing
//! else, and the operator grants it by name. Natively the same calls go to a host in the test's own
//! thread, which the module `mock` sets up, so that `cargo test` needs no server.

extern crate self as drystone_sdk;

#[cfg(target_family = "wasm")]
mod arena;
pub mod bindings;
mod configuration;
#[doc(hidden)]
pub mod export;
pub mod host;
#[cfg(not(target_family = "wasm"))]
pub mod mock;
pub mod policy;
pub mod prelude;
pub mod schema;
pub mod types;

pub use configuration::NoConfig;
pub use drystone_sdk_macros::{config, policy};
pub use policy::{Policy, Setup};
pub use {serde, serde_json};
