//! Numbers that nobody can foresee. Grant: `random = true`.

use super::sys::random as sys;

/// One of them.
pub fn number() -> u64 {
    sys::random()
}
