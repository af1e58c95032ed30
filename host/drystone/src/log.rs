//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::Failure;
use crate::cli::LogFormat;

/// Starts logging. A filter that does not parse is refused, not ignored.
pub fn start(format: LogFormat) -> Result<(), Failure> {
    let filter = config::environment::log_filter().unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        Failure::Usage(format!("RUST_LOG = {filter:?}: {error}; \"info\" would do"))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}
