//! Counters in `/metrics`, named `drystone_plugin_<name>_total`. Grant: `metrics = true`.

use super::sys::metrics as sys;

pub use crate::bindings::imports::drystone::policy::metrics::Error;

/// Adds to a counter. Names and label names are `[a-z][a-z0-9_]*`.
pub fn count(name: &str, labels: &[(&str, &str)], by: u64) -> Result<(), Error> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let labels: Vec<_> = labels.iter().map(owned).collect();
    sys::count(name, &labels, by)
}
