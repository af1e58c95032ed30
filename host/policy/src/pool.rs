//! Where a call gets its instance from, and where it goes after.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use config::settings::Isolation;

use crate::background::Background;
use crate::failure::Failure;
use crate::instance::Instance;
use crate::recipe::Recipe;

/// Instances of one generation that wait for calls.
///
/// With [`Isolation::PerRequest`] they are new, and a background thread makes the next ones and
/// takes used ones down. With [`Isolation::Pooled`] they come back after every good call. Either
/// way a call that finds none makes its own.
pub(crate) struct Pool {
    recipe: Recipe,
    isolation: Isolation,
    /// So many wait at most.
    size: usize,
    idle: Mutex<Vec<Instance>>,
    background: Background,
    /// Nothing waits in it: another generation is asked.
    resting: AtomicBool,
    /// Used instances that wait to be taken down. They still hold places of the engine.
    leaving: AtomicUsize,
}

impl Pool {
    /// An empty pool.
    pub(crate) fn new(
        recipe: Recipe,
        isolation: Isolation,
        size: usize,
        background: Background,
    ) -> Arc<Self> {
        Arc::new(Self {
            recipe,
            isolation,
            size,
            idle: Mutex::default(),
            background,
            resting: AtomicBool::new(false),
            leaving: AtomicUsize::new(0),
        })
    }

    /// Puts the first instances in. Those that cannot be made are made when they are needed.
    pub(crate) async fn warm(&self) {
        let size = match self.isolation {
            Isolation::PerRequest => self.size,
            Isolation::Pooled => 1,
        };
        while !self.rests() && self.idle().len() < size {
            match self.recipe.make().await {
                Ok(instance) => self.idle().push(instance),
                Err(_) => return,
            }
        }
    }

    /// An instance for one call.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Instance, Failure> {
        let idle = self.idle().pop();
        if self.isolation == Isolation::PerRequest {
            self.refill();
        }
        match idle {
            Some(instance) => Ok(instance),
            None => self.recipe.make().await,
        }
    }

    /// Takes an instance back after a call that went well.
    pub(crate) fn park(self: &Arc<Self>, instance: Instance) {
        if self.isolation == Isolation::Pooled {
            let mut idle = self.idle();
            if idle.len() < self.size && !self.rests() {
                return idle.push(instance);
            }
        }
        self.retire(instance);
    }

    /// Takes an instance down, off the request's path unless so many wait for that already that
    /// they would take the places of others.
    pub(crate) fn retire(self: &Arc<Self>, instance: Instance) {
        if self.leaving.fetch_add(1, Ordering::Relaxed) >= self.size {
            drop(instance);
            self.leaving.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let leaving = Leaving { pool: self.clone(), _instance: instance };
        self.background.offer(async move { drop(leaving) });
    }

    /// Lets go of what waits, and keeps nothing waiting until it is woken.
    pub(crate) fn rest(&self) {
        self.resting.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }

    /// Has instances waiting again.
    pub(crate) fn wake(self: &Arc<Self>) {
        self.resting.store(false, Ordering::Relaxed);
        self.refill();
    }

    fn rests(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
    }

    /// Has the next instance made. It is none's loss if that cannot be: calls make their own.
    fn refill(self: &Arc<Self>) {
        let pool: Weak<Self> = Arc::downgrade(self);
        self.background.offer(async move {
            if let Some(pool) = pool.upgrade() {
                pool.warm().await;
            }
        });
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        self.idle.lock().expect("nothing panics while it pushes or pops")
    }

    /// What its instances are made of.
    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }
}

/// A used instance on its way out, whether it is taken down in the background or not at all.
struct Leaving {
    pool: Arc<Pool>,
    _instance: Instance,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.pool.leaving.fetch_sub(1, Ordering::Relaxed);
    }
}
