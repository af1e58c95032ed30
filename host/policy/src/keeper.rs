//! The thread that looks after pools whose instances take long to make.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Thread;

use tokio::runtime::{Builder, Runtime};

use crate::pool::Note;

/// Looks after pools, off the path of requests. Clones are the same keeper, whose thread ends with
/// the last of them.
///
/// To wake a thread costs more than most hooks do, so calls only note that there is something to
/// do; the engine's clock wakes the thread within a tick.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Inner>);

struct Inner {
    due: Mutex<Vec<Note>>,
    /// There is something in `due`.
    any: AtomicBool,
    thread: Thread,
}

impl Keeper {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = std::sync::mpsc::channel::<Weak<Inner>>();
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let work = move || {
            if let Ok(inner) = receiver.recv() {
                work(&inner, &runtime);
            }
        };
        let thread = std::thread::Builder::new().name("policy-keeper".to_owned()).spawn(work)?;
        let thread = thread.thread().clone();
        let inner = Inner { due: Mutex::default(), any: AtomicBool::new(false), thread };
        let inner = Arc::new(inner);
        // The thread waits for nothing else.
        let _ = sender.send(Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// Has it heeded within a tick.
    pub(crate) fn give(&self, note: Note) {
        self.0.due().push(note);
        self.0.any.store(true, Ordering::Release);
    }

    /// Looks after what is due, if something is. The clock does this.
    pub(crate) fn tick(&self) {
        if self.0.any.load(Ordering::Acquire) {
            self.0.thread.unpark();
        }
    }
}

fn work(inner: &Weak<Inner>, runtime: &Runtime) {
    while let Some(inner) = inner.upgrade() {
        let due = inner.take();
        drop(inner);
        if due.is_empty() {
            std::thread::park();
        }
        for note in due {
            runtime.block_on(note.heed());
        }
    }
}

impl Inner {
    fn take(&self) -> Vec<Note> {
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut *self.due())
    }

    fn due(&self) -> std::sync::MutexGuard<'_, Vec<Note>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}
