//! State that outlives an instance.

use std::time::{Duration, Instant};

use crate::bindings::drystone::policy::kv;
use crate::guest::Guest;
use crate::state::kv::{Bucket, Error};

impl kv::Host for Guest {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.services.kv.get(&key, Instant::now())
    }

    fn set(&mut self, key: String, value: Vec<u8>, ttl_ms: Option<u64>) -> Result<(), kv::Error> {
        let ttl = ttl_ms.map(Duration::from_millis);
        self.services.kv.set(&key, value, ttl, Instant::now()).map_err(error)
    }

    fn delete(&mut self, key: String) {
        self.services.kv.delete(&key);
    }

    fn add(&mut self, key: String, delta: i64, ttl_ms: Option<u64>) -> Result<i64, kv::Error> {
        let ttl = ttl_ms.map(Duration::from_millis);
        self.services.kv.add(&key, delta, ttl, Instant::now()).map_err(error)
    }

    fn take(
        &mut self,
        key: String,
        tokens: u32,
        capacity: u32,
        per_second: f32,
    ) -> Result<u64, kv::Error> {
        let bucket = Bucket { capacity, per_second };
        self.services.kv.take(&key, tokens, bucket, Instant::now()).map_err(error)
    }
}

fn error(error: Error) -> kv::Error {
    match error {
        Error::Full => kv::Error::Full,
        Error::BadKey => kv::Error::BadKey,
    }
}
