//! One component by itself, for tools that test plugins.

use std::time::Duration;

use config::settings::Limits;

/// What `drystone check` gives a plugin that says nothing of limits, with more time: counting
/// slows a guest down.
pub const LIMITS: Limits = Limits {
    cpu: Duration::from_secs(1),
    memory_bytes: 64 << 20,
    output_bytes: 64 << 10,
    host_copy_bytes: 4 << 20,
    concurrency: 1,
};
