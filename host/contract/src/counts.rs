//! Counters of collectives by purpose, written by every rank and read by metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a collective is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The base model's own sums and gathers.
    Base,
    /// Adapter work; zero unless `plain_sharding = "fully-sharded"`.
    Lora,
}

impl Purpose {
    /// Both, for those who list them.
    pub const ALL: [Self; 2] = [Self::Base, Self::Lora];

    /// The label that metrics use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Lora => "lora",
        }
    }
}

/// Collectives done by one group since it started. A collective counts once, not once a rank.
#[derive(Debug, Default)]
pub struct CollectiveCounts {
    base: AtomicU64,
    lora: AtomicU64,
}

impl CollectiveCounts {
    /// Counts one collective.
    pub fn add(&self, purpose: Purpose) {
        self.add_many(purpose, 1);
    }

    /// Counts several.
    pub fn add_many(&self, purpose: Purpose, times: u64) {
        self.of(purpose).fetch_add(times, Ordering::Relaxed);
    }

    /// Collectives so far.
    pub fn get(&self, purpose: Purpose) -> u64 {
        self.of(purpose).load(Ordering::Relaxed)
    }

    fn of(&self, purpose: Purpose) -> &AtomicU64 {
        match purpose {
            Purpose::Base => &self.base,
            Purpose::Lora => &self.lora,
        }
    }
}
