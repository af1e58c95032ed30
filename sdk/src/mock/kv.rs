//! Keys and values, whole numbers and buckets, against a clock that the test moves.

use std::collections::HashMap;
use std::time::Duration;

#[derive(Default)]
pub struct Store(HashMap<String, Entry>);

struct Entry {
    value: Value,
    until: Option<Duration>,
}

enum Value {
    Bytes(Vec<u8>),
    Number(i64),
    Bucket { tokens: f64, at: Duration },
}

impl Store {
    fn live(&self, key: &str, now: Duration) -> Option<&Value> {
        let entry = self.0.get(key)?;
        entry.until.is_none_or(|until| now < until).then_some(&entry.value)
    }

    fn put(&mut self, key: &str, value: Value, until: Option<Duration>) {
        self.0.insert(key.into(), Entry { value, until });
    }

    pub fn get(&self, key: &str, now: Duration) -> Option<Vec<u8>> {
        match self.live(key, now)? {
            Value::Bytes(bytes) => Some(bytes.clone()),
            Value::Number(number) => Some(number.to_string().into_bytes()),
            Value::Bucket { .. } => None,
        }
    }

    pub fn set(&mut self, key: &str, value: &[u8], until: Option<Duration>) {
        self.put(key, Value::Bytes(value.into()), until);
    }

    pub fn delete(&mut self, key: &str) {
        self.0.remove(key);
    }

    pub fn add(&mut self, key: &str, delta: i64, now: Duration, until: Option<Duration>) -> i64 {
        let before = match self.live(key, now) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        };
        let sum = before.saturating_add(delta);
        self.put(key, Value::Number(sum), until);
        sum
    }

    /// Milliseconds until the tokens would be there; 0 when they were and are taken.
    pub fn take(&mut self, key: &str, asked: u32, full: u32, rate: f32, now: Duration) -> u64 {
        let (full, rate, asked) = (f64::from(full), f64::from(rate), f64::from(asked));
        let there = match self.live(key, now) {
            Some(Value::Bucket { tokens, at }) => {
                full.min(tokens + rate * now.saturating_sub(*at).as_secs_f64())
            }
            _ => full,
        };
        if asked <= there {
            self.put(key, Value::Bucket { tokens: there - asked, at: now }, None);
            return 0;
        }
        ((asked - there) / rate * 1000.0).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn values_end_with_their_time() {
        let mut store = Store::default();
        store.set("a", b"x", Some(Duration::from_secs(1)));
        assert_eq!(store.get("a", NOW), Some(b"x".to_vec()));
        assert_eq!(store.get("a", Duration::from_secs(1)), None);
    }

    #[test]
    fn numbers_add_up() {
        let mut store = Store::default();
        assert_eq!(store.add("n", 5, NOW, None), 5);
        assert_eq!(store.add("n", -2, NOW, None), 3);
    }

    #[test]
    fn a_bucket_fills_up_again() {
        let mut store = Store::default();
        assert_eq!(store.take("b", 10, 10, 2.0, NOW), 0);
        assert_eq!(store.take("b", 4, 10, 2.0, NOW), 2000);
        assert_eq!(store.take("b", 4, 10, 2.0, Duration::from_secs(2)), 0);
    }
}
