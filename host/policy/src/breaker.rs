//! Sets a plugin aside that fails too often, and tries it again after a while.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use config::settings;

/// Counts the failures of one plugin. Closed lets all calls through; open lets one through after
/// each cooldown, whose success closes it again.
#[derive(Debug)]
pub struct Breaker {
    limits: settings::Breaker,
    open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures within the window, oldest first. At most `failures` of them.
    strikes: VecDeque<Instant>,
    /// While open: when the next probe may go.
    probe_at: Option<Instant>,
    probing: bool,
}

impl Breaker {
    /// Closed.
    pub fn new(limits: settings::Breaker) -> Self {
        Self { limits, open: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Whether a call may go now. Where it is a probe, the next one waits for another cooldown, so
    /// a probe whose caller goes away blocks nobody.
    pub fn allows(&self, now: Instant) -> bool {
        if !self.is_open() {
            return true;
        }
        let mut state = self.lock();
        let due = state.probe_at.is_none_or(|at| now >= at);
        if due {
            state.probe_at = Some(now + self.limits.cooldown);
            state.probing = true;
        }
        due
    }

    /// A call went well. Closes an open breaker if a probe was under way: calls from before it
    /// opened say nothing.
    pub fn succeeded(&self) {
        if !self.is_open() {
            return;
        }
        let mut state = self.lock();
        if state.probing {
            *state = State::default();
            self.open.store(false, Ordering::Relaxed);
        }
    }

    /// A call failed. True if that opened the breaker.
    pub fn failed(&self, now: Instant) -> bool {
        if self.limits.failures == 0 {
            return false;
        }
        let mut state = self.lock();
        state.strike(now, &self.limits);
        let trips = state.strikes.len() >= self.limits.failures as usize;
        let tripped = trips && !self.is_open();
        if tripped {
            state.probe_at = Some(now + self.limits.cooldown);
            self.open.store(true, Ordering::Relaxed);
        }
        tripped
    }

    /// Whether calls are held back.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn strike(&mut self, now: Instant, limits: &settings::Breaker) {
        self.probing = false;
        self.strikes.push_back(now);
        let old = |strike: &Instant| now.saturating_duration_since(*strike) > limits.window;
        while self.strikes.len() > limits.failures as usize || self.strikes.front().is_some_and(old)
        {
            self.strikes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker(failures: u32) -> Breaker {
        Breaker::new(settings::Breaker { failures, window: 10 * SECOND, cooldown: 30 * SECOND })
    }

    fn tripped(now: Instant) -> Breaker {
        let breaker = breaker(2);
        assert!(!breaker.failed(now));
        assert!(breaker.failed(now));
        breaker
    }

    #[test]
    fn failures_within_the_window_open_it_and_older_ones_do_not_count() {
        let (breaker, start) = (breaker(2), Instant::now());
        assert!(!breaker.failed(start));
        assert!(!breaker.failed(start + 11 * SECOND));
        assert!(breaker.allows(start + 12 * SECOND));
        assert!(breaker.failed(start + 12 * SECOND));
        assert!(!breaker.failed(start + 12 * SECOND), "tripped before");
        assert!(breaker.is_open() && !breaker.allows(start + 13 * SECOND));
    }

    #[test]
    fn one_probe_goes_after_each_cooldown() {
        let start = Instant::now();
        let breaker = tripped(start);
        let later = start + 30 * SECOND;
        assert!(breaker.allows(later));
        assert!(!breaker.allows(later + SECOND), "the probe is still out");
        assert!(breaker.allows(later + 30 * SECOND), "the probe was lost");
    }

    #[test]
    fn the_probe_decides_and_stragglers_do_not() {
        let start = Instant::now();
        let breaker = tripped(start);
        breaker.succeeded();
        assert!(breaker.is_open(), "that call began before it opened");
        assert!(breaker.allows(start + 30 * SECOND));
        assert!(!breaker.failed(start + 31 * SECOND));
        assert!(breaker.is_open() && !breaker.allows(start + 32 * SECOND));
        assert!(breaker.allows(start + 60 * SECOND));
        breaker.succeeded();
        assert!(!breaker.is_open() && breaker.allows(start + 60 * SECOND));
        assert!(!breaker.failed(start + 61 * SECOND), "the count begins anew");
    }

    #[test]
    fn without_a_number_it_never_opens() {
        let (breaker, start) = (breaker(0), Instant::now());
        assert!((0..100).all(|_| !breaker.failed(start) && breaker.allows(start)));
    }
}
