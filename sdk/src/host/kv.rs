//! State that outlives the instance, the plugin's own. Grant: `kv_kib = 256`, its size.

use std::time::Duration;

use super::{milliseconds, sys::kv as sys};

pub use crate::bindings::imports::drystone::policy::kv::Error;

/// A bucket that fills up by itself, for rate limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// How many tokens it holds.
    pub capacity: u32,
    /// How many it gains in a second.
    pub per_second: f32,
}

/// What came of taking tokens out of a [`Bucket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// They were there.
    Taken,
    /// They were not, and nothing was taken; after this long they would be.
    After(Duration),
}

/// The value under a key.
pub fn get(key: &str) -> Option<Vec<u8>> {
    sys::get(key)
}

/// Keeps a value under a key, for so long or for good.
pub fn set(key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<(), Error> {
    sys::set(key, value, lifetime.map(milliseconds))
}

/// Forgets a key.
pub fn delete(key: &str) {
    sys::delete(key);
}

/// Adds to a whole number kept under a key, which begins at 0, and gives the sum.
pub fn add(key: &str, delta: i64, lifetime: Option<Duration>) -> Result<i64, Error> {
    sys::add(key, delta, lifetime.map(milliseconds))
}

/// Takes tokens out of a bucket kept under a key, which begins full.
pub fn take(key: &str, tokens: u32, bucket: Bucket) -> Result<Take, Error> {
    let wait = sys::take(key, tokens, bucket.capacity, bucket.per_second)?;
    Ok(match wait {
        0 => Take::Taken,
        wait => Take::After(Duration::from_millis(wait)),
    })
}
