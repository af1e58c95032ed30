//! Where a call gets its instance from, and where it goes after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use config::settings::Isolation;
use tokio::runtime::Handle;

use crate::failure::Failure;
use crate::instance::Instance;
use crate::keeper::Keeper;
use crate::recipe::Recipe;

/// Instances that take longer than this to make are made by the keeper.
const LIGHT: Duration = Duration::from_micros(100);

/// Instances of one generation that wait for calls.
///
/// With [`Isolation::PerRequest`] they are new; the next ones are made and used ones taken down
/// once the calling task has given way. With [`Isolation::Pooled`] they come back after every good
/// call. Either way a call that finds none makes its own.
pub(crate) struct Pool {
    recipe: Recipe,
    isolation: Isolation,
    /// So many instances wait at most, for a call or for their end: all hold places of the engine.
    size: usize,
    waiting: Mutex<Waiting>,
    keeper: Keeper,
    /// Someone will look after it.
    noted: AtomicBool,
    /// Instances are made quickly enough to be made between requests, on the thread that used the
    /// last one: what they touch is then in the caches of its core.
    light: AtomicBool,
    /// Nothing waits in it: another generation is asked.
    resting: AtomicBool,
}

#[derive(Default)]
#[expect(clippy::vec_box, reason = "an instance is large, and moves with every call")]
struct Waiting {
    /// For a call.
    ready: Vec<Box<Instance>>,
    /// For their end.
    used: Vec<Box<Instance>>,
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new(
        recipe: Recipe,
        isolation: Isolation,
        size: usize,
        keeper: Keeper,
    ) -> Arc<Self> {
        Arc::new(Self {
            recipe,
            isolation,
            size,
            waiting: Mutex::default(),
            keeper,
            noted: AtomicBool::new(false),
            light: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        })
    }

    /// An instance for one call.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Box<Instance>, Failure> {
        let ready = self.waiting().ready.pop();
        match ready {
            Some(instance) => Ok(instance),
            None => self.recipe.make().await,
        }
    }

    /// Takes an instance back after a call that went well.
    pub(crate) fn park(self: &Arc<Self>, instance: Box<Instance>) {
        if self.isolation == Isolation::Pooled && !self.rests() {
            let mut waiting = self.waiting();
            if waiting.total() < self.size {
                return waiting.ready.push(instance);
            }
        }
        self.retire(instance);
    }

    /// Takes an instance down, off the request's path unless too many wait already.
    pub(crate) fn retire(self: &Arc<Self>, instance: Box<Instance>) {
        let mut waiting = self.waiting();
        if waiting.total() < self.size {
            waiting.used.push(instance);
            drop(waiting);
            self.note();
        }
    }

    /// Takes used instances down and puts new ones in. Those that cannot be made now are made when
    /// they are needed.
    pub(crate) async fn look_after(&self) {
        self.noted.store(false, Ordering::Release);
        let used = std::mem::take(&mut self.waiting().used);
        drop(used);
        let ready = match self.isolation {
            Isolation::PerRequest => self.size,
            Isolation::Pooled => 1.min(self.size),
        };
        while !self.rests() && self.waiting().ready.len() < ready {
            let start = Instant::now();
            let Ok(instance) = self.recipe.make().await else { return };
            self.light.store(start.elapsed() < LIGHT, Ordering::Relaxed);
            self.waiting().ready.push(instance);
            tokio::task::yield_now().await;
        }
    }

    /// Lets go of what waits, and keeps nothing waiting until it is woken.
    pub(crate) fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
        let waiting = std::mem::take(&mut *self.waiting());
        drop(waiting);
    }

    /// Has instances waiting again.
    pub(crate) fn wake(self: &Arc<Self>) {
        self.resting.store(false, Ordering::Relaxed);
        self.note();
    }

    fn rests(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
    }

    /// Has somebody look after it soon.
    fn note(self: &Arc<Self>) {
        if self.noted.load(Ordering::Acquire) || self.noted.swap(true, Ordering::AcqRel) {
            return;
        }
        let note = Note(Arc::downgrade(self));
        match Handle::try_current() {
            Ok(runtime) if self.light.load(Ordering::Relaxed) => {
                runtime.spawn(async move { note.heed().await });
            }
            _ => self.keeper.give(note),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics while it pushes or pops")
    }

    /// What its instances are made of.
    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }
}

/// That a pool is to be looked after. It can be lost, with the runtime of a thread.
pub(crate) struct Note(Weak<Pool>);

impl Note {
    /// Looks after the pool, if it is there still.
    pub(crate) async fn heed(self) {
        if let Some(pool) = self.0.upgrade() {
            pool.look_after().await;
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.noted.store(false, Ordering::Release);
        }
    }
}

impl Waiting {
    fn total(&self) -> usize {
        self.ready.len() + self.used.len()
    }
}
