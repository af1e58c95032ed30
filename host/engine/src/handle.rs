//! The engine as the rest of the host holds it: submit a request, read its ticket.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use adapters::residency::LOADS_MAX;
use contract::request::{Progress, Request};
use contract::step::Executor;

use crate::door::Door;
use crate::load::{Load, Open, Shared};
use crate::mailbox::{Reader, mailbox};
use crate::main_loop::{Command, MainLoop};
use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::stream::Stream;
use crate::text::Text;

pub use adapters::catalogue::{Catalogue, ChangeError, Unavailable};
pub use adapters::root::{Root, RootError};

pub use crate::door::SubmitError;

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

/// A handle on one replica. Clones are the same engine. When the last is dropped the engine stops
/// after the step under way and fails what is still open.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    commands: SyncSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    door: Door,
    text: Arc<Text>,
    blocks: usize,
    /// Absent without a prefix cache.
    recent: Option<Recent>,
}

impl Engine {
    /// Starts the engine's thread and the loads of pinned adapters.
    pub fn start(parts: Parts) -> Result<Self, StartError> {
        if parts.blocks == 0 {
            return Err(StartError::NoBlocks);
        }
        let shared = Arc::new(Shared::default());
        let queue_max = parts.settings.queue_max;
        // Room for every place in the queue, every load, the stop, and wake-ups of two kinds: one
        // is sent when the engine has seen the one before, so two of each at most.
        let (commands, receiver) = sync_channel(queue_max + LOADS_MAX + 5);
        let inner = Inner {
            commands: commands.clone(),
            thread: Mutex::default(),
            door: Door {
                shared: Arc::clone(&shared),
                catalogue: Arc::clone(&parts.catalogue),
                metrics: Arc::clone(&parts.metrics),
                queue_max,
                vocab: parts.vocab,
                context_max: parts.context_max.min(parts.blocks * parts.settings.block_tokens),
            },
            text: Arc::clone(&parts.text),
            blocks: parts.blocks,
            recent: (parts.settings.prefix_cache)
                .then(|| Recent::new(parts.blocks, parts.settings.block_tokens)),
        };
        let main_loop = MainLoop::new(parts, shared, (commands, receiver))?;
        let thread = thread::Builder::new().name("engine".into()).spawn(|| main_loop.run())?;
        *inner.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(Self(Arc::new(inner)))
    }

    /// Puts a request into the queue. Its ticket tells how it goes and, dropped, cancels it.
    pub fn submit(&self, mut request: Request) -> Result<Ticket, SubmitError> {
        let Inner { door, commands, text, recent, .. } = &*self.0;
        let (entry, queued) = door.enter(&request)?;
        if let Some(recent) = recent {
            recent.note(entry.as_ref().map(|entry| entry.id), &request.prompt);
        }
        let (writer, reader) = mailbox();
        let places = (queued, Open::new(&door.shared));
        let stream = Box::new(Stream::new(&mut request, text, writer, places));
        match commands.try_send(Command::Submit { request, entry, stream }) {
            Ok(()) => {
                let (shared, commands) = (Arc::clone(&door.shared), commands.clone());
                Ok(Ticket { reader, shared, commands })
            }
            Err(TrySendError::Full(_)) => Err(door.queue_full(door.queue_max)),
            Err(TrySendError::Disconnected(_)) => Err(door.dead()),
        }
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        let shared = &self.0.door.shared;
        let (open, running) = (shared.open(), shared.running.load(Ordering::Relaxed));
        Load {
            running,
            waiting: open.saturating_sub(running),
            queue_max: self.0.door.queue_max,
            blocks_used: shared.blocks_used.load(Ordering::Relaxed),
            blocks_total: self.0.blocks,
        }
    }

    /// Whether the adapter that is served under `name` lies in a slot.
    pub fn is_resident(&self, name: &str) -> bool {
        let Inner { door, .. } = &*self.0;
        let resident = door.shared.resident.load();
        door.catalogue.get(name).is_ok_and(|entry| resident.contains(&entry.id))
    }

    /// Share of a prompt, 0 to 1, that is expected in the prefix cache: a guess from the prompts
    /// that were accepted lately.
    pub fn prefix_hit(&self, adapter: Option<&str>, tokens: &[u32]) -> f32 {
        let Inner { door, recent, .. } = &*self.0;
        let Some(recent) = recent else { return 0.0 };
        match adapter.map(|name| door.catalogue.get(name)) {
            None => recent.hit(None, tokens),
            Some(Ok(entry)) => recent.hit(Some(entry.id), tokens),
            Some(Err(_)) => 0.0,
        }
    }

    /// Tells the engine that the catalogue changed, so that it frees what nobody can ask for any
    /// more. Sequences that have such an adapter keep it to their end.
    pub fn catalogue_changed(&self) {
        if !self.0.door.shared.catalogue_changed.swap(true, Ordering::AcqRel) {
            // An engine that is gone needs no waking.
            let _ = self.0.commands.try_send(Command::Wake);
        }
    }

    /// Takes no more requests; those that are open go on.
    pub fn drain(&self) {
        self.0.door.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it takes no more requests.
    pub fn is_draining(&self) -> bool {
        self.0.door.shared.draining.load(Ordering::Relaxed)
    }

    /// Whether every accepted request has ended.
    pub fn is_idle(&self) -> bool {
        self.0.door.shared.open() == 0
    }

    /// Waits until every accepted request has ended.
    pub async fn idle(&self) {
        self.0.door.shared.idle().await;
    }

    /// Whether the ranks are lost.
    pub fn is_dead(&self) -> bool {
        self.0.door.shared.dead.get().is_some()
    }

    /// Adapters that can be asked for.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.0.door.catalogue
    }

    /// The base's text side.
    pub fn text(&self) -> &Arc<Text> {
        &self.0.text
    }

    /// Longest sequence in tokens, prompt and output together.
    pub fn context_max(&self) -> usize {
        self.0.door.context_max
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
