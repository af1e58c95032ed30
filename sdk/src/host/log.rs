//! Lines in the server's log, under the plugin's name. Needs no grant. Long lines are cut, and a
//! plugin that writes too many is muted for a while.

use super::sys::log as sys;

pub use crate::bindings::imports::drystone::policy::log::Level;

/// For those who write the plugin.
pub fn debug(message: &str) {
    sys::log(Level::Debug, message);
}

/// For those who run it.
pub fn info(message: &str) {
    sys::log(Level::Info, message);
}

/// Something is odd.
pub fn warn(message: &str) {
    sys::log(Level::Warn, message);
}

/// Something is broken.
pub fn error(message: &str) {
    sys::log(Level::Error, message);
}
