//! The environment variables that the host reads.

use std::path::{Path, PathBuf};

/// The log filter of `RUST_LOG`, when it is set to something.
pub fn log_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty())
}

/// Where files may be kept that can be made again: `drystone` below `XDG_CACHE_HOME`, else below
/// `.cache` in the home folder.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let caches = folder("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.or_else(|| Some(Path::new(&folder("HOME")?).join(".cache")));
    caches.map(|caches| caches.join("drystone"))
}
