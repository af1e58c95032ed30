//! What a plugin keeps between its calls: bytes, sums and token buckets under keys.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest key.
const KEY_BYTES: usize = 256;
/// What an entry costs beside its key and value: about what the map takes for it.
const ENTRY_BYTES: usize = 64;

/// One plugin's keys. A lock over one map: calls hold it for well under a microsecond, and `add`
/// and `take` must read and write in one step anyway.
#[derive(Debug)]
pub struct Store {
    quota: usize,
    map: Mutex<Map>,
}

/// Why a key was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The quota is used up.
    #[error("the quota is used up")]
    Full,
    /// Keys have 1 to 256 bytes.
    #[error("keys have 1 to 256 bytes")]
    BadKey,
}

#[derive(Debug, Default)]
struct Map {
    entries: HashMap<Box<str>, Entry>,
    used: usize,
    /// Nothing ends before it, so that a full store is not searched in vain.
    next_end: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Value,
    ends: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Value {
    Bytes(Vec<u8>),
    Sum(i64),
    Bucket { level: f64, at: Instant },
}

/// A token bucket as a call describes it.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Tokens of a full one, which it is at first.
    pub capacity: u32,
    /// Tokens it gains.
    pub per_second: f32,
}

impl Store {
    /// Empty. The quota bounds keys and values, and counts 64 bytes more for each entry.
    pub fn new(quota_bytes: usize) -> Self {
        Self { quota: quota_bytes, map: Mutex::default() }
    }

    /// The value under `key`; a sum as its eight bytes, little-endian. Buckets cannot be read.
    pub fn get(&self, key: &str, now: Instant) -> Option<Vec<u8>> {
        match &self.lock().live(key, now)?.value {
            Value::Bytes(bytes) => Some(bytes.clone()),
            Value::Sum(sum) => Some(sum.to_le_bytes().to_vec()),
            Value::Bucket { .. } => None,
        }
    }

    /// Keeps `value` under `key`, for `ttl` if there is one.
    pub fn set(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Result<(), Error> {
        let entry = Entry { value: Value::Bytes(value), ends: end(now, ttl) };
        self.lock().put(key, entry, self.quota, now)
    }

    /// Forgets what is under `key`.
    pub fn delete(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Adds to the sum under `key`, which ends `ttl` after its first addition. What is no sum
    /// counts as 0 and is replaced. Stays at the ends of the range.
    pub fn add(
        &self,
        key: &str,
        delta: i64,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Result<i64, Error> {
        let mut map = self.lock();
        let (sum, ends) = match map.live(key, now) {
            Some(Entry { value: Value::Sum(sum), ends }) => (sum.saturating_add(delta), *ends),
            _ => (delta, end(now, ttl)),
        };
        map.put(key, Entry { value: Value::Sum(sum), ends }, self.quota, now)?;
        Ok(sum)
    }

    /// Takes `tokens` and gives 0, or takes nothing and gives the milliseconds to wait; `u64::MAX`
    /// where no wait helps.
    pub fn take(&self, key: &str, tokens: u32, bucket: Bucket, now: Instant) -> Result<u64, Error> {
        let mut map = self.lock();
        let level = bucket.level(map.live(key, now), now) - f64::from(tokens);
        if level < 0.0 {
            return check(key).map(|()| bucket.wait_ms(tokens, -level));
        }
        let value = Value::Bucket { level, at: now };
        // A full bucket says nothing that no entry does not say.
        let ends = bucket.time_for(f64::from(bucket.capacity) - level);
        let entry = Entry { value, ends: ends.and_then(|wait| now.checked_add(wait)) };
        map.put(key, entry, self.quota, now).map(|()| 0)
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn level(&self, entry: Option<&Entry>, now: Instant) -> f64 {
        let full = f64::from(self.capacity);
        let Some(Entry { value: Value::Bucket { level, at }, .. }) = entry else { return full };
        let gained = now.saturating_duration_since(*at).as_secs_f64() * self.rate();
        (level + gained).min(full)
    }

    fn wait_ms(&self, tokens: u32, missing: f64) -> u64 {
        let wait = self.time_for(missing).filter(|_| tokens <= self.capacity);
        wait.map_or(u64::MAX, |wait| (wait.as_secs_f64() * 1e3).ceil() as u64)
    }

    fn time_for(&self, tokens: f64) -> Option<Duration> {
        Duration::try_from_secs_f64(tokens / self.rate()).ok()
    }

    fn rate(&self) -> f64 {
        let rate = f64::from(self.per_second);
        if rate.is_finite() { rate.max(0.0) } else { 0.0 }
    }
}

impl Map {
    fn live(&self, key: &str, now: Instant) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| !entry.ended(now))
    }

    fn put(&mut self, key: &str, entry: Entry, quota: usize, now: Instant) -> Result<(), Error> {
        check(key)?;
        let new = cost(key, &entry);
        let fits = |map: &Self| {
            let old = map.entries.get(key).map_or(0, |old| cost(key, old));
            (map.used - old).saturating_add(new) <= quota
        };
        if !fits(self) {
            self.reclaim(now);
        }
        if !fits(self) {
            return Err(Error::Full);
        }
        self.next_end = earlier(self.next_end, entry.ends);
        self.remove(key);
        self.entries.insert(key.into(), entry);
        self.used += new;
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        if let Some(old) = self.entries.remove(key) {
            self.used -= cost(key, &old);
        }
    }

    fn reclaim(&mut self, now: Instant) {
        if self.next_end.is_none_or(|end| end > now) {
            return;
        }
        self.entries.retain(|_, entry| !entry.ended(now));
        self.used = self.entries.iter().map(|(key, entry)| cost(key, entry)).sum();
        self.next_end = self.entries.values().fold(None, |end, entry| earlier(end, entry.ends));
    }
}

impl Entry {
    fn ended(&self, now: Instant) -> bool {
        self.ends.is_some_and(|end| end <= now)
    }
}

fn check(key: &str) -> Result<(), Error> {
    if (1..=KEY_BYTES).contains(&key.len()) { Ok(()) } else { Err(Error::BadKey) }
}

fn cost(key: &str, entry: &Entry) -> usize {
    let value = match &entry.value {
        Value::Bytes(bytes) => bytes.len(),
        Value::Sum(_) => 8,
        Value::Bucket { .. } => 16,
    };
    key.len() + value + ENTRY_BYTES
}

/// A time too far to be told is never.
fn end(now: Instant, ttl: Option<Duration>) -> Option<Instant> {
    ttl.and_then(|ttl| now.checked_add(ttl))
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
