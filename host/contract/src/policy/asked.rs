//! An answer that may take a while.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The answer of a hook: there already, or a future.
pub enum Asked<'a, T> {
    /// No guest was asked. Empty once it was taken.
    Now(Option<T>),
    /// A guest runs when this is polled. Dropping it ends the guest.
    Later(Pin<Box<dyn Future<Output = T> + Send + 'a>>),
}

impl<'a, T> Asked<'a, T> {
    /// An answer that is there.
    pub fn now(answer: T) -> Self {
        Self::Now(Some(answer))
    }

    /// An answer that `work` will give.
    pub fn later(work: impl Future<Output = T> + Send + 'a) -> Self {
        Self::Later(Box::pin(work))
    }
}

// Nothing here is pinned but the boxed future, which is so by itself.
impl<T> Unpin for Asked<'_, T> {}

impl<T> Future for Asked<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut *self {
            Self::Now(answer) => Poll::Ready(answer.take().expect("polled after the end: a bug")),
            Self::Later(work) => work.as_mut().poll(context),
        }
    }
}
