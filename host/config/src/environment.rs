//! The one environment variable that the host reads.

/// The log filter of `RUST_LOG`, when it is set to something.
pub fn log_filter() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty())
}
