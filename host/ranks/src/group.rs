//! The ranks of one replica as one executor.

use std::sync::Arc;
use std::time::Instant;

use config::settings;
use contract::adapter::{Generation, Slot};
use contract::counts::CollectiveCounts;
use contract::step::{Answer, Batch, Executor, Fault, StepOutput};
use model::blueprint::Progress;
use model::hf::ModelConfig;

use crate::backend;
use crate::error::StartError;
use crate::source::Source;
use crate::worker::{Build, Command, Failure, Worker};

/// What a group is made of.
pub struct GroupSpec<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Where its weights come from.
    pub model: &'a settings::Model,
    /// Ranks, backend and how they talk.
    pub parallel: &'a settings::Parallel,
    /// Sizes of the KV cache and of batches.
    pub engine: &'a settings::Engine,
    /// Adapters on the device at once.
    pub slots_max: usize,
    /// Told about loading.
    pub progress: &'a Arc<Progress>,
}

/// The ranks of one replica, one thread each. Dropping it ends them.
pub struct Group {
    workers: Vec<Worker>,
    limits: Limits,
    counts: Arc<CollectiveCounts>,
    /// The rank that failed for good, and what it said.
    dead: Option<(usize, String)>,
}

/// What a started group has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of the KV cache.
    pub blocks: usize,
    /// Positions of the longest sequence.
    pub positions_max: usize,
    /// Rows of the largest batch.
    pub rows_max: usize,
}

impl Group {
    /// Starts the ranks and waits until all have loaded their part of the model.
    pub fn start(spec: &GroupSpec<'_>) -> Result<Self, StartError> {
        let counts = Arc::new(CollectiveCounts::default());
        backend::check(spec.parallel)?;
        let source = Source::open(spec)?;
        let limits = source.limits;
        Self::of(backend::builds(spec.parallel, source, &counts), limits, counts)
    }

    fn of(
        builds: Vec<Build>,
        limits: Limits,
        counts: Arc<CollectiveCounts>,
    ) -> Result<Self, StartError> {
        let failed = |rank, message| StartError::Rank { rank, message };
        let spawn = |(rank, build)| {
            Worker::spawn(rank, build).map_err(|error| failed(rank, error.to_string()))
        };
        let workers = builds.into_iter().enumerate().map(spawn).collect::<Result<_, _>>()?;
        let mut group = Self { workers, limits, counts, dead: None };
        match group.replies() {
            Ok(_) => Ok(group),
            Err(Fault::Dead { rank, message }) => Err(failed(rank, message)),
            Err(Fault::Refused(message)) => Err(failed(0, message)),
        }
    }

    /// What there is room for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Blocks of the KV cache.
    pub fn blocks(&self) -> usize {
        self.limits.blocks
    }

    /// Collectives so far.
    pub fn counts(&self) -> &Arc<CollectiveCounts> {
        &self.counts
    }

    /// Has all ranks do one thing; the first rank's answers.
    fn call(&mut self, command: &Command) -> Result<Vec<Answer>, Fault> {
        if let Some((rank, message)) = self.dead.clone() {
            return Err(Fault::Dead { rank, message });
        }
        self.workers.iter().for_each(|worker| worker.send(command.clone()));
        self.replies()
    }

    /// One reply of every rank: the first rank's answers, or the worst failure.
    fn replies(&mut self) -> Result<Vec<Answer>, Fault> {
        let mut answers = Vec::new();
        let mut worst: Option<(Failure, usize)> = None;
        for (rank, worker) in self.workers.iter().enumerate() {
            match worker.reply() {
                Ok(reply) if rank == 0 => answers = reply,
                Ok(_) => {}
                Err(failure) => worst = worst.max(Some((failure, rank))),
            }
        }
        match worst {
            None => Ok(answers),
            Some((Failure::Refused(message), _)) => Err(Fault::Refused(message)),
            Some((Failure::Follower(message) | Failure::Dead(message), rank)) => {
                self.dead = Some((rank, message.clone()));
                Err(Fault::Dead { rank, message })
            }
        }
    }
}

impl Executor for Group {
    fn run(&mut self, batch: Arc<Batch>) -> Result<StepOutput, Fault> {
        let (rows, rows_max) = (batch.tokens.len(), self.limits.rows_max);
        if rows > rows_max {
            let why = format!("a batch of {rows} rows; batch_tokens_max is {rows_max}");
            return Err(Fault::Refused(why));
        }
        let start = Instant::now();
        let answers = self.call(&Command::Run(batch))?;
        Ok(StepOutput { answers, elapsed: start.elapsed() })
    }

    fn load(&mut self, slot: Slot, generation: Arc<Generation>) -> Result<(), Fault> {
        match self.call(&Command::Load(slot, generation)) {
            Ok(_) => Ok(()),
            Err(fault @ Fault::Refused(_)) => {
                self.unload(slot)?;
                Err(fault)
            }
            Err(fault) => Err(fault),
        }
    }

    fn unload(&mut self, slot: Slot) -> Result<(), Fault> {
        self.call(&Command::Unload(slot)).map(drop)
    }
}
