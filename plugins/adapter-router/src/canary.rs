//! A draw that anyone can repeat.

use drystone_sdk::host::text;

/// 0 to 99.
pub fn draw(adapter: &str, tenant: &str, key: &str) -> u64 {
    // The separator occurs in no name, so that no two triples are one text.
    text::hash(&[adapter, tenant, key].join("\0")) % 100
}
