//! What a plugin may ask of its host. All but [`log`] and [`answer`] are denied until the operator
//! allows them; each module says with which key of `allow`. A plugin that calls something it was
//! not allowed does not load.

#[cfg(target_family = "wasm")]
use crate::bindings::imports::drystone::policy as sys;
#[cfg(not(target_family = "wasm"))]
use crate::mock::functions as sys;

pub mod adapters;
pub mod answer;
pub mod clock;
pub mod headers;
pub mod kv;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod random;
pub mod replicas;
pub mod text;

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
