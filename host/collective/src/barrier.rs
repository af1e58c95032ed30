//! A barrier for rank threads: it spins briefly, then parks, and it can be broken.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::comm::CommError;

/// About 20 us on current machines: longer than equal work on two cores drifts apart in one layer.
const SPINS: usize = 1000;

/// Tries that give the core away first, for when ranks outnumber cores.
const YIELDS: usize = 20;

/// Holds back every rank until all have arrived, again and again.
pub struct Barrier {
    ranks: usize,
    timeout: Duration,
    spins: usize,
    arrived: AtomicUsize,
    turn: AtomicUsize,
    broken: AtomicBool,
    /// How many ranks sleep on `wake`.
    parked: Mutex<usize>,
    wake: Condvar,
}

impl Barrier {
    pub fn new(ranks: usize, timeout: Duration) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            ranks,
            timeout,
            spins: if ranks <= cores { SPINS } else { 0 },
            arrived: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            parked: Mutex::new(0),
            wake: Condvar::new(),
        }
    }

    /// Returns when all ranks have called it, or with an error when one never will.
    pub fn wait(&self) -> Result<(), CommError> {
        let turn = self.turn.load(Ordering::Acquire);
        if self.broken.load(Ordering::Acquire) {
            return Err(CommError::PeerLost);
        }
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.ranks {
            self.arrived.store(0, Ordering::Relaxed);
            self.turn.store(turn + 1, Ordering::Release);
            self.wake_parked();
        } else if !self.spin(turn) {
            self.park(turn)?;
        }
        // A turn that everybody reached is good, even if a peer has left since.
        if self.turn.load(Ordering::Acquire) == turn { Err(CommError::PeerLost) } else { Ok(()) }
    }

    /// Releases everybody, now and for ever, with an error.
    pub fn break_up(&self) {
        self.broken.store(true, Ordering::Release);
        self.wake_parked();
    }

    fn is_over(&self, turn: usize) -> bool {
        self.turn.load(Ordering::Acquire) != turn || self.broken.load(Ordering::Acquire)
    }

    fn spin(&self, turn: usize) -> bool {
        let spins = (0..self.spins).map(|_| hint::spin_loop());
        let yields = (0..YIELDS).map(|_| thread::yield_now());
        spins.chain(yields).any(|()| self.is_over(turn))
    }

    fn park(&self, turn: usize) -> Result<(), CommError> {
        let deadline = Instant::now() + self.timeout;
        let mut parked = self.parked();
        *parked += 1;
        while !self.is_over(turn) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(parked);
                self.break_up();
                return Err(CommError::Timeout { seconds: self.timeout.as_secs() });
            }
            let woken = self.wake.wait_timeout(parked, left);
            parked = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        *parked -= 1;
        Ok(())
    }

    /// The turn or the break is stored before the lock is taken here and read after it is taken in
    /// `park`, so a rank either sees it or is counted.
    fn wake_parked(&self) {
        if *self.parked() > 0 {
            self.wake.notify_all();
        }
    }

    /// A count is whole even when its owner panicked.
    fn parked(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
