//! Threads for work that no request waits for.

use std::future::Future;
use std::pin::Pin;

use tokio::runtime::Builder;
use tokio::sync::mpsc;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A thread that does one piece of work after the other. It ends with its last clone.
#[derive(Clone)]
pub(crate) struct Background(mpsc::Sender<Work>);

impl Background {
    /// A thread called `name`, for which up to `waiting` pieces of work may wait.
    pub(crate) fn start(name: &str, waiting: usize) -> std::io::Result<Self> {
        let (sender, mut receiver) = mpsc::channel::<Work>(waiting);
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let work = move || {
            runtime.block_on(async {
                while let Some(work) = receiver.recv().await {
                    work.await;
                }
            });
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self(sender))
    }

    /// Hands `work` over, unless too much is waiting.
    pub(crate) fn offer(&self, work: impl Future<Output = ()> + Send + 'static) -> bool {
        self.0.try_send(Box::pin(work)).is_ok()
    }
}

/// Does `work` on a thread of its own and waits for it, wherever the caller runs.
pub(crate) fn wait<T: Send>(work: impl Future<Output = T> + Send) -> std::io::Result<T> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || runtime.block_on(work));
        thread.join().map_err(|_| std::io::Error::other("a thread panicked: a bug"))
    })
}
