//! One rank on its own thread: commands go in, one reply a command comes out, in order.
//!
//! The reply to a step comes when it is computed, and the next step may be launched before. So a
//! rank with a step in flight looks for the next command and for the step's answers in turn: to
//! wait for either would hold up the other. (To wait for a device is to look at it all the time,
//! too; this costs no more.)

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

use collective::comm::{Comm, CommError};
use contract::adapter::{Generation, Slot};
use contract::step::{Batch, StepOutput};
use kernels::error::Error as Kernel;
use kernels::ops::Ops;
use model::error::{Error, Result};
use model::rank::Rank;

/// What a rank does, whatever its backend.
pub trait Work {
    /// See [`Rank::start`].
    fn start(&mut self, batch: &Arc<Batch>) -> Result<()>;

    /// See [`Rank::in_flight`].
    fn in_flight(&self) -> usize;

    /// See [`Rank::is_done`].
    fn is_done(&mut self) -> Result<bool>;

    /// See [`Rank::answer`].
    fn answer(&mut self) -> Result<StepOutput>;

    /// See [`Rank::time_idle`].
    fn time_idle(&mut self) -> Result<()> {
        Ok(())
    }

    /// See [`Rank::load`].
    fn load(&mut self, slot: Slot, generation: &Generation) -> Result<()>;

    /// See [`Rank::unload`].
    fn unload(&mut self, slot: Slot);
}

impl<O: Ops, C: Comm<O>> Work for Rank<O, C> {
    fn start(&mut self, batch: &Arc<Batch>) -> Result<()> {
        Rank::start(self, batch)
    }

    fn in_flight(&self) -> usize {
        Rank::in_flight(self)
    }

    fn is_done(&mut self) -> Result<bool> {
        Rank::is_done(self)
    }

    fn answer(&mut self) -> Result<StepOutput> {
        Rank::answer(self)
    }

    fn time_idle(&mut self) -> Result<()> {
        Rank::time_idle(self)
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
    TimeIdle,
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

/// What a run brought on the first rank; empty otherwise.
pub type Reply = std::result::Result<StepOutput, Failure>;

/// Commands that a rank has not replied to: two steps in flight, and a load behind them.
pub const COMMANDS_MAX: usize = 3;

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
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        let (outbox, replies) = sync_channel(COMMANDS_MAX);
        let thread = thread::Builder::new()
            .name(format!("rank-{rank}"))
            .spawn(move || live(build, &inbox, &outbox))?;
        Ok(Self { commands: Some(commands), replies, thread: Some(thread) })
    }

    /// Where commands go in.
    fn commands(&self) -> &SyncSender<Command> {
        self.commands.as_ref().expect("commands end with the worker: this is a bug")
    }

    /// Waits for the reply to the oldest unanswered command.
    pub fn reply(&self) -> Reply {
        let gone = |_| Err(Failure::Follower("its thread has ended".to_owned()));
        self.replies.recv().unwrap_or_else(gone)
    }
}

/// Gives commands to ranks. While it is there, their threads wait for more.
pub struct Orders(Vec<SyncSender<Command>>);

impl Orders {
    /// For these ranks.
    pub fn new(workers: &[Worker]) -> Self {
        Self(workers.iter().map(|worker| worker.commands().clone()).collect())
    }

    /// Passes a command on. If a thread has ended, [`Worker::reply`] says so.
    pub fn give(&self, command: &Command) {
        for commands in &self.0 {
            // A rank that is gone has left its failure among the replies, or none at all.
            let _ = commands.send(command.clone());
        }
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
        Ok(End::Over) => return,
        Ok(End::Failed(failure)) => failure,
        Err(panic) => Failure::Dead(format!("panicked: {}", message(panic.as_ref()))),
    };
    // Nobody listens if the group is being dropped.
    let _ = replies.send(Err(failure));
}

/// Why a rank's thread ends.
enum End {
    /// Nobody gives commands, or nobody listens to replies.
    Over,
    /// It told its last.
    Failed(Failure),
}

fn obey(build: Build, commands: &Receiver<Command>, replies: &SyncSender<Reply>) -> End {
    let mut rank = match build() {
        Ok(rank) => rank,
        Err(error) => return End::Failed(failure(error)),
    };
    let mut obedient = Obedient { rank: rank.as_mut(), replies };
    let mut going = obedient.tell(Ok(StepOutput::default()));
    loop {
        going = match going.and_then(|()| obedient.next(commands)) {
            Ok(command) => obedient.execute(command),
            Err(End::Over) => return obedient.land(),
            Err(failed) => return failed,
        };
    }
}

/// A rank, and who gets its replies.
struct Obedient<'a> {
    rank: &'a mut dyn Work,
    replies: &'a SyncSender<Reply>,
}

impl Obedient<'_> {
    /// The next command. Until there is one, steps are answered as they are done.
    fn next(&mut self, commands: &Receiver<Command>) -> std::result::Result<Command, End> {
        while self.rank.in_flight() > 0 {
            match commands.try_recv() {
                Ok(command) => return Ok(command),
                Err(TryRecvError::Disconnected) => return Err(End::Over),
                Err(TryRecvError::Empty) => {}
            }
            match self.rank.is_done() {
                Ok(true) => self.answer()?,
                Ok(false) => thread::yield_now(),
                Err(error) => return Err(End::Failed(failure(error))),
            }
        }
        commands.recv().map_err(|_| End::Over)
    }

    fn execute(&mut self, command: Command) -> std::result::Result<(), End> {
        let done = match command {
            Command::Run(batch) => match self.rank.start(&batch) {
                Ok(()) => return Ok(()),
                refused => refused,
            },
            Command::Load(slot, generation) => match self.rank.load(slot, &generation) {
                Err(error @ Error::Kernel(Kernel::Memory { .. } | Kernel::Unfit(_))) => {
                    Err(Error::Generation(error.to_string()))
                }
                loaded => loaded,
            },
            Command::Unload(slot) => {
                self.rank.unload(slot);
                Ok(())
            }
            Command::TimeIdle => self.rank.time_idle(),
        };
        let reply = lasting(done.map(|()| StepOutput::default()))?;
        // The steps in flight come first.
        while self.rank.in_flight() > 0 {
            self.answer()?;
        }
        self.tell(reply)
    }

    /// Waits for the steps in flight, whose answers nobody wants.
    fn land(&mut self) -> End {
        while self.rank.in_flight() > 0 {
            if let Err(error) = self.rank.answer() {
                return End::Failed(failure(error));
            }
        }
        End::Over
    }

    fn answer(&mut self) -> std::result::Result<(), End> {
        let reply = lasting(self.rank.answer())?;
        self.tell(reply)
    }

    /// Replies to the oldest command.
    fn tell(&mut self, reply: Reply) -> std::result::Result<(), End> {
        self.replies.send(reply).map_err(|_| End::Over)
    }
}

/// The reply of a rank that goes on after it.
fn lasting(result: Result<StepOutput>) -> std::result::Result<Reply, End> {
    match result.map_err(failure) {
        Err(failure @ (Failure::Follower(_) | Failure::Dead(_))) => Err(End::Failed(failure)),
        reply => Ok(reply),
    }
}

fn failure(error: Error) -> Failure {
    let message = error.to_string();
    match error {
        Error::Generation(_) | Error::Step(_) => Failure::Refused(message),
        Error::Comm(CommError::PeerLost) => Failure::Follower(message),
        _ => Failure::Dead(message),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
