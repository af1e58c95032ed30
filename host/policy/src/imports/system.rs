//! Time, chance, the log and counters.

use std::hash::{BuildHasher, RandomState};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::bindings::drystone::policy::{clock, log, metrics, random};
use crate::guest::Guest;
use crate::quiet::{Passage, clean};
use crate::state::counters;

impl log::Host for Guest {
    fn log(&mut self, level: log::Level, message: String) {
        let plugin = &*self.services.plugin;
        let passage = self.services.log.pass(Instant::now());
        if passage == Passage::Muted {
            return;
        }
        let message = clean(&message);
        match level {
            log::Level::Debug => tracing::debug!(plugin, "{message}"),
            log::Level::Info => tracing::info!(plugin, "{message}"),
            log::Level::Warn => tracing::warn!(plugin, "{message}"),
            log::Level::Error => tracing::error!(plugin, "{message}"),
        }
        if passage == Passage::Last {
            tracing::warn!(plugin, "it writes too much and is muted for a while");
        }
    }
}

impl clock::Host for Guest {
    fn now_ms(&mut self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_ns(&mut self) -> u64 {
        u64::try_from(self.services.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl random::Host for Guest {
    /// The standard library seeds the keys of its hashers from the system, so nobody outside can
    /// foresee what a hash under a new key comes to.
    fn random(&mut self) -> u64 {
        RandomState::new().hash_one(self.services.since.elapsed())
    }
}

impl metrics::Host for Guest {
    fn count(
        &mut self,
        name: String,
        labels: Vec<(String, String)>,
        by: u64,
    ) -> Result<(), metrics::Error> {
        let Self { services, .. } = self;
        services.counters.count(&services.plugin, &name, &labels, by).map_err(|error| match error {
            counters::Error::BadName(name) => metrics::Error::BadName(name),
            counters::Error::TooMany => metrics::Error::TooMany,
        })
    }
}
