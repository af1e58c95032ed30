//! One rank on its own thread: commands go in, one reply a command comes out.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use collective::comm::{Comm, CommError};
use contract::adapter::{Generation, Slot};
use contract::step::{Answer, Batch};
use kernels::error::Error as Kernel;
use kernels::ops::Ops;
use model::error::{Error, Result};
use model::rank::Rank;

/// What a rank does, whatever its backend.
pub trait Work {
    /// Computes one step; see [`Rank::forward`].
    fn run(&mut self, batch: &Arc<Batch>) -> Result<Vec<Answer>>;

    /// See [`Rank::load`].
    fn load(&mut self, slot: Slot, generation: &Generation) -> Result<()>;

    /// See [`Rank::unload`].
    fn unload(&mut self, slot: Slot);
}

impl<O: Ops, C: Comm<O::Buf>> Work for Rank<O, C> {
    fn run(&mut self, batch: &Arc<Batch>) -> Result<Vec<Answer>> {
        self.forward(batch)
    }

    fn load(&mut self, slot: Slot, generation: &Generation) -> Result<()> {
        Rank::load(self, slot, generation)
    }

    fn unload(&mut self, slot: Slot) {
        Rank::unload(self, slot);
    }
}

/// Builds a rank; called on the thread that then owns it.
pub type Build = Box<dyn FnOnce() -> Result<Box<dyn Work>> + Send>;

/// An order to all ranks of a group.
#[derive(Clone)]
pub enum Command {
    Run(Arc<Batch>),
    Load(Slot, Arc<Generation>),
    Unload(Slot),
}

/// Why a command failed, the least telling first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The rank is unharmed.
    Refused(String),
    /// The rank has ended because another did.
    Follower(String),
    /// The rank has ended.
    Dead(String),
}

/// The answers of a run on the first rank; empty otherwise.
pub type Reply = std::result::Result<Vec<Answer>, Failure>;

/// A handle on a rank's thread. Dropping it ends the thread and waits for it.
pub struct Worker {
    /// `None` while dropping.
    commands: Option<SyncSender<Command>>,
    replies: Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that builds a rank. The first reply says whether that worked.
    pub fn spawn(rank: usize, build: Build) -> std::io::Result<Self> {
        let (commands, inbox) = sync_channel(1);
        let (outbox, replies) = sync_channel(1);
        let thread = thread::Builder::new()
            .name(format!("rank-{rank}"))
            .spawn(move || live(build, &inbox, &outbox))?;
        Ok(Self { commands: Some(commands), replies, thread: Some(thread) })
    }

    /// Passes a command on. If the thread has ended, [`Self::reply`] says so.
    pub fn send(&self, command: Command) {
        let commands = self.commands.as_ref().expect("commands end with the worker: this is a bug");
        // A rank that is gone has left its failure among the replies, or none at all.
        let _ = commands.send(command);
    }

    /// Waits for the reply to the oldest unanswered command.
    pub fn reply(&self) -> Reply {
        let gone = |_| Err(Failure::Follower("its thread has ended".to_owned()));
        self.replies.recv().unwrap_or_else(gone)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic was caught and reported on the way.
            let _ = thread.join();
        }
    }
}

/// Builds a rank and obeys until the commands end or something fails for good. The rank is gone
/// before its last reply is sent, and with it its end of the group, so that peers don't wait.
fn live(build: Build, commands: &Receiver<Command>, replies: &SyncSender<Reply>) {
    let ended = panic::catch_unwind(AssertUnwindSafe(|| obey(build, commands, replies)));
    let failure = match ended {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::Dead(format!("panicked: {}", message(panic.as_ref()))),
    };
    // Nobody listens if the group is being dropped.
    let _ = replies.send(Err(failure));
}

fn obey(
    build: Build,
    commands: &Receiver<Command>,
    replies: &SyncSender<Reply>,
) -> std::result::Result<(), Failure> {
    let mut rank = build().map_err(failure)?;
    let mut reply = Ok(Vec::new());
    loop {
        if replies.send(reply).is_err() {
            return Ok(());
        }
        let Ok(command) = commands.recv() else { return Ok(()) };
        reply = match execute(rank.as_mut(), command) {
            Err(failure @ (Failure::Follower(_) | Failure::Dead(_))) => return Err(failure),
            reply => reply,
        };
    }
}

fn execute(rank: &mut dyn Work, command: Command) -> Reply {
    match command {
        Command::Run(batch) => rank.run(&batch).map_err(failure),
        Command::Load(slot, generation) => match rank.load(slot, &generation) {
            Ok(()) => Ok(Vec::new()),
            Err(error @ Error::Kernel(Kernel::Memory { .. } | Kernel::Unfit(_))) => {
                Err(Failure::Refused(error.to_string()))
            }
            Err(error) => Err(failure(error)),
        },
        Command::Unload(slot) => {
            rank.unload(slot);
            Ok(Vec::new())
        }
    }
}

fn failure(error: Error) -> Failure {
    let message = error.to_string();
    match error {
        Error::Generation(_) => Failure::Refused(message),
        Error::Comm(CommError::PeerLost) => Failure::Follower(message),
        _ => Failure::Dead(message),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
