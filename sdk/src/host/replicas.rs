//! The replicas to route between. Grant: `replicas = true`.

pub use crate::bindings::imports::drystone::policy::replicas::Replica;

use super::sys::replicas as sys;

/// All of them.
pub fn all() -> Vec<Replica> {
    sys::replicas()
}
