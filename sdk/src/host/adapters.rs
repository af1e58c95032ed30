//! The adapters that are served. Grant: `adapters = true`.

pub use crate::bindings::imports::drystone::policy::adapters::Adapter;

use super::sys::adapters as sys;

/// All of them.
pub fn all() -> impl Iterator<Item = Adapter> {
    (0..sys::count()).filter_map(sys::get)
}

/// How many there are.
pub fn count() -> u32 {
    sys::count()
}

/// Whether one is served under this name.
pub fn exists(name: &str) -> bool {
    sys::exists(name)
}
