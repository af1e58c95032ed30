//! How busy the engine is, and the places that bound it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// How busy the engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences that may wait.
    pub queue_max: usize,
    /// KV blocks that sequences hold.
    pub blocks_used: usize,
    /// KV blocks there are.
    pub blocks_total: usize,
}

impl Load {
    /// Part of the KV cache that sequences hold, 0 to 1.
    pub fn kv_used(&self) -> f32 {
        self.blocks_used as f32 / self.blocks_total.max(1) as f32
    }
}

/// What the engine's thread and its handles both see.
#[derive(Default)]
pub struct Shared {
    /// Nothing new is accepted.
    pub draining: AtomicBool,
    /// Some ticket was dropped since the engine last looked.
    pub cancelled: AtomicBool,
    /// Why nothing will work any more, once that is so.
    pub dead: OnceLock<String>,
    /// Sequences that run.
    pub running: AtomicUsize,
    /// KV blocks that sequences hold.
    pub blocks_used: AtomicUsize,
    open: AtomicUsize,
    queued: AtomicUsize,
    idle: Notify,
}

impl Shared {
    /// Accepted sequences that did not end yet.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Accepted sequences that were never admitted yet.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Waits until nothing is open.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// A place in the queue; dropping it frees the place.
pub struct Queued(Arc<Shared>);

impl Queued {
    /// Takes a place, or says how many are taken already.
    pub fn take(shared: &Arc<Shared>, queue_max: usize) -> Result<Self, usize> {
        let more = |queued| (queued < queue_max).then_some(queued + 1);
        shared.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)?;
        Ok(Self(Arc::clone(shared)))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open sequence; dropping it closes it.
pub struct Open(Arc<Shared>);

impl Open {
    /// Opens one.
    pub fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
