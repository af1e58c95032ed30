//! The time. Grant: `clock = true`.

use std::time::Duration;

use super::sys::clock as sys;

/// Time since 1970.
pub fn since_epoch() -> Duration {
    Duration::from_millis(sys::now_ms())
}

/// Time since some moment, never going back.
pub fn monotonic() -> Duration {
    Duration::from_nanos(sys::monotonic_ns())
}
