//! The environment variables that the host reads.

use std::path::PathBuf;

use crate::launch::{self, Launch, LaunchError};

/// The log filter of `RUST_LOG`, when it is set to something.
pub fn log_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty())
}

/// The user's folder of caches: `XDG_CACHE_HOME`, or `.cache` in `HOME`.
pub fn cache_dir() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
}

/// Which of several processes this is, as their launcher says; `None` where it is alone.
pub fn launch() -> Result<Option<Launch>, LaunchError> {
    launch::launch(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}
