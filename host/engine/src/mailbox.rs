//! Where the engine leaves news of a sequence and its owner finds them.
//!
//! News that nobody fetched yet merge, so a slow reader costs memory for one sequence's output and
//! never the engine's time.

use std::future::poll_fn;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use contract::request::{Finish, Progress, Scored};

/// A mailbox's two ends.
pub fn mailbox() -> (Writer, Reader) {
    let mailbox = Arc::new(Mailbox::default());
    (Writer { mailbox: Arc::clone(&mailbox), finished: false }, Reader { mailbox })
}

#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    /// The reader went away.
    abandoned: AtomicBool,
}

#[derive(Default)]
struct State {
    news: Progress,
    /// Whether `news` holds anything.
    fresh: bool,
    /// Set while the reader waits.
    waker: Option<Waker>,
    /// The last news were fetched.
    over: bool,
}

/// The engine's end. Dropped before [`Writer::finish`], it finishes with [`Finish::Failed`]: a
/// reader never waits for an engine that is gone.
pub struct Writer {
    mailbox: Arc<Mailbox>,
    finished: bool,
}

impl Writer {
    /// Whether nobody will read what is written.
    pub fn is_abandoned(&self) -> bool {
        self.mailbox.abandoned.load(Ordering::Acquire)
    }

    /// Adds a token and the text that it completed. Wake what is returned, outside of hot loops.
    #[must_use]
    pub fn token(&mut self, token: Scored, text: &str) -> Option<Waker> {
        self.write(|news| {
            news.text.push_str(text);
            news.tokens.push(token);
        })
    }

    /// Adds the logprobs of the prompt.
    #[must_use]
    pub fn prompt(&mut self, scores: Vec<Scored>) -> Option<Waker> {
        self.write(|news| news.prompt = Some(scores))
    }

    /// Says how much of the prompt was cached; told with the next news.
    pub fn cached_tokens(&mut self, tokens: u32) {
        self.mailbox.lock().news.cached_tokens = tokens;
    }

    /// Says how the sequence ended. What comes after is not told.
    #[must_use]
    pub fn finish(&mut self, finish: Finish) -> Option<Waker> {
        let waker = self.write(|news| news.finish = Some(finish));
        self.finished = true;
        waker
    }

    fn write(&mut self, change: impl FnOnce(&mut Progress)) -> Option<Waker> {
        if self.finished {
            return None;
        }
        let mut state = self.mailbox.lock();
        change(&mut state.news);
        state.fresh = true;
        state.waker.take()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(waker) = self.finish(Finish::Failed("the engine stopped".into())) {
            waker.wake();
        }
    }
}

/// The owner's end.
pub struct Reader {
    mailbox: Arc<Mailbox>,
}

impl Reader {
    /// News since the last time; waits for some. `None` after the one with a finish.
    pub async fn next(&mut self) -> Option<Progress> {
        poll_fn(|context| self.poll(context)).await
    }

    /// Tells the engine that nobody reads any more. False if all was read anyway.
    pub fn abandon(&self) -> bool {
        self.mailbox.abandoned.store(true, Ordering::Release);
        !self.mailbox.lock().over
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        let mut state = self.mailbox.lock();
        if state.over {
            return Poll::Ready(None);
        }
        if !state.fresh {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.fresh = false;
        let cached_tokens = state.news.cached_tokens;
        let news = mem::take(&mut state.news);
        state.news.cached_tokens = cached_tokens;
        state.over = news.finish.is_some();
        Poll::Ready(Some(news))
    }
}

impl Mailbox {
    /// A panic elsewhere leaves the news as they are, whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
