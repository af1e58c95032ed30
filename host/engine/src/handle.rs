//! The engine as the rest of the host holds it: submit a request, read its ticket.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use adapters::catalogue::{Catalogue, Entry, Unavailable};
use adapters::residency::LOADS_MAX;
use contract::request::{Progress, Request};
use contract::step::Executor;

use crate::load::{Load, Open, Queued, Shared};
use crate::mailbox::{Reader, mailbox};
use crate::main_loop::{Command, MainLoop};
use crate::metrics::Metrics;
use crate::stream::Stream;
use crate::text::Text;

/// What an engine is made of.
pub struct Parts {
    /// The ranks.
    pub executor: Box<dyn Executor>,
    /// KV blocks that the ranks have.
    pub blocks: usize,
    /// Tokens that the base has embeddings for.
    pub vocab: usize,
    /// Longest sequence in tokens.
    pub context_max: usize,
    /// The base's text side.
    pub text: Arc<Text>,
    /// Adapters that can be asked for.
    pub catalogue: Arc<Catalogue>,
    /// Bounds.
    pub settings: config::settings::Engine,
    /// Device slots for generations.
    pub slots_max: usize,
    /// Host memory for generations, in bytes.
    pub host_bytes: u64,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no KV block.
    #[error("the KV cache has room for no block; engine.kv_cache_gib is too small")]
    NoBlocks,
    /// The system gave no thread.
    #[error("the engine's thread cannot start: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a request got no ticket. The messages are for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try again later.
    #[error("{queued} requests wait already, and at most {queue_max} may; try again later")]
    QueueFull {
        /// Requests that wait.
        queued: usize,
        /// As many as may.
        queue_max: usize,
    },
    /// The server is about to stop.
    #[error("the server is shutting down and takes no more requests")]
    Draining,
    /// No such adapter.
    #[error("there is no adapter `{name}`")]
    UnknownAdapter {
        /// What was asked for.
        name: String,
    },
    /// The adapter is there but unfit to be served.
    #[error("adapter `{name}`: {reason}")]
    AdapterRefused {
        /// What was asked for.
        name: String,
        /// Why not.
        reason: String,
    },
    /// There is nothing to go on from.
    #[error("the prompt has no tokens; it needs at least one")]
    EmptyPrompt,
    /// The base does not have this token.
    #[error("token {token} is not in the vocabulary, which has {vocab} tokens")]
    UnknownToken {
        /// In the prompt, the stop tokens or the logit bias.
        token: u32,
        /// Tokens that the base has.
        vocab: usize,
    },
    /// Prompt and output do not fit together.
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more were asked for; together at most \
         {context_max} are possible"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate.
        max_tokens: usize,
        /// Longest sequence.
        context_max: usize,
    },
    /// The ranks are lost.
    #[error("the server cannot go on: {message}")]
    Dead {
        /// What happened.
        message: String,
    },
}

/// A handle on one replica. Clones are the same engine. When the last is dropped the engine stops
/// after the step under way and fails what is still open.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    commands: SyncSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
    text: Arc<Text>,
    catalogue: Arc<Catalogue>,
    metrics: Arc<Metrics>,
    queue_max: usize,
    blocks: usize,
    vocab: usize,
    context_max: usize,
}

impl Engine {
    /// Starts the engine's thread and the loads of pinned adapters.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        if parts.blocks == 0 {
            return Err(StartError::NoBlocks);
        }
        let shared = Arc::new(Shared::default());
        let queue_max = parts.settings.queue_max;
        // Room for every place in the queue, every load, the stop, and wake-ups: one is sent when
        // the engine has seen the one before, so two at most.
        let (commands, receiver) = sync_channel(queue_max + LOADS_MAX + 3);
        let inner = Inner {
            commands: commands.clone(),
            thread: Mutex::default(),
            shared: Arc::clone(&shared),
            text: Arc::clone(&parts.text),
            catalogue: Arc::clone(&parts.catalogue),
            metrics: Arc::clone(&parts.metrics),
            queue_max,
            blocks: parts.blocks,
            vocab: parts.vocab,
            context_max: parts.context_max.min(parts.blocks * parts.settings.block_tokens),
        };
        let main_loop = MainLoop::new(parts, shared, (commands, receiver))?;
        let thread = thread::Builder::new().name("engine".into()).spawn(|| main_loop.run())?;
        *inner.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self(Arc::new(inner)))
    }

    /// Puts a request into the queue. Its ticket tells how it goes and, dropped, cancels it.
    pub fn submit(&self, mut request: Request) -> Result<Ticket, SubmitError> {
        let inner = &*self.0;
        let entry = inner.accept(&request).inspect_err(|error| inner.count(error))?;
        let queued = inner.take_place().inspect_err(|error| inner.count(error))?;
        let (writer, reader) = mailbox();
        let places = (queued, Open::new(&inner.shared));
        let stream = Box::new(Stream::new(&mut request, &inner.text, writer, places));
        match inner.commands.try_send(Command::Submit { request, entry, stream }) {
            Ok(()) => Ok(Ticket {
                reader,
                shared: inner.shared.clone(),
                commands: inner.commands.clone(),
            }),
            Err(TrySendError::Full(_)) => Err(inner.queue_full(inner.queue_max)),
            Err(TrySendError::Disconnected(_)) => Err(inner.dead()),
        }
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let shared = &self.0.shared;
        let (open, running) = (shared.open(), shared.running.load(Ordering::Relaxed));
        Load {
            running,
            waiting: open.saturating_sub(running),
            blocks_used: shared.blocks_used.load(Ordering::Relaxed),
            blocks_total: self.0.blocks,
        }
    }

    /// Takes no more requests; those that are open go on.
    pub fn drain(&self) {
        self.0.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Whether every accepted request has ended.
    pub fn is_idle(&self) -> bool {
        self.0.shared.open() == 0
    }

    /// Waits until every accepted request has ended.
    pub async fn idle(&self) {
        self.0.shared.idle().await;
    }

    /// Whether the ranks are lost.
    pub fn is_dead(&self) -> bool {
        self.0.shared.dead.get().is_some()
    }

    /// Adapters that can be asked for.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.0.catalogue
    }

    /// The base's text side.
    pub fn text(&self) -> &Arc<Text> {
        &self.0.text
    }

    /// Longest sequence in tokens, prompt and output together.
    pub fn context_max(&self) -> usize {
        self.0.context_max
    }
}

impl Inner {
    /// Checks a request and finds its adapter.
    fn accept(&self, request: &Request) -> Result<Option<Arc<Entry>>, SubmitError> {
        if self.shared.dead.get().is_some() {
            return Err(self.dead());
        }
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Draining);
        }
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens as usize);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt + max_tokens > self.context_max {
            let context_max = self.context_max;
            return Err(SubmitError::TooLong { prompt, max_tokens, context_max });
        }
        self.knows_tokens(request)?;
        request.adapter.as_deref().map(|name| self.adapter(name)).transpose()
    }

    /// The ranks index by token: one that the base does not have must not get there.
    fn knows_tokens(&self, request: &Request) -> Result<(), SubmitError> {
        let sampling = &request.sampling;
        let biased = sampling.logit_bias.iter().map(|(token, _)| token);
        let mut tokens = request.prompt.iter().chain(&sampling.stop_tokens).chain(biased);
        let vocab = self.vocab;
        match tokens.find(|token| **token as usize >= vocab) {
            Some(&token) => Err(SubmitError::UnknownToken { token, vocab }),
            None => Ok(()),
        }
    }

    fn adapter(&self, name: &str) -> Result<Arc<Entry>, SubmitError> {
        let name = || name.to_owned();
        self.catalogue.get(&name()).cloned().map_err(|error| match error {
            Unavailable::Unknown => SubmitError::UnknownAdapter { name: name() },
            Unavailable::Refused(reason) => {
                SubmitError::AdapterRefused { name: name(), reason: reason.to_string() }
            }
        })
    }

    fn take_place(&self) -> Result<Queued, SubmitError> {
        Queued::take(&self.shared, self.queue_max).map_err(|queued| self.queue_full(queued))
    }

    fn queue_full(&self, queued: usize) -> SubmitError {
        SubmitError::QueueFull { queued, queue_max: self.queue_max }
    }

    fn dead(&self) -> SubmitError {
        let message = self.shared.dead.get().cloned();
        SubmitError::Dead { message: message.unwrap_or_else(|| "the engine stopped".into()) }
    }

    fn count(&self, error: &SubmitError) {
        if let SubmitError::QueueFull { .. } = error {
            self.metrics.rejected.get_or_create(&[("reason", "max_num_queued_reqs")]).inc();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.commands.send(Command::Stop).is_ok()
            && let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread panicked");
        }
    }
}

/// The owner's end of one accepted request. Dropping it cancels the request: the next step frees
/// what it holds.
pub struct Ticket {
    reader: Reader,
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
}

impl Ticket {
    /// News since the last time; waits for some. The last one has a finish, after it comes `None`.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Progress> {
        self.reader.next().await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let open = self.reader.abandon();
        if open && !self.shared.cancelled.swap(true, Ordering::AcqRel) {
            // An engine that is gone needs no waking.
            let _ = self.commands.try_send(Command::Wake);
        }
    }
}
