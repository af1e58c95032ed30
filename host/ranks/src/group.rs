//! The ranks of one replica as one executor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use config::launch::Launch;
use config::settings;
use contract::adapter::{Generation, Slot};
use contract::counts::CollectiveCounts;
use contract::step::{Batch, Executor, Fault, StepOutput};
use kernels::cuda::NcclName;
use model::blueprint::Progress;
use model::hf::ModelConfig;

use crate::backend::{Backend, GiveUp};
use crate::cache::Cache;
use crate::error::StartError;
use crate::remote::Remotes;
use crate::source::Source;
use crate::worker::{Build, Command, Failure, Orders, Worker};

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
    /// Which of `parallel.replicas` this is, from 0.
    pub replica: usize,
    /// Which of several processes this is; `None` where the group is in one.
    pub launch: Option<&'a Launch>,
}

impl GroupSpec<'_> {
    /// Finds sizes that contradict each other, before anything is started.
    pub fn check(&self) -> Result<(), StartError> {
        Cache::of(self).check()
    }

    /// What processes of one group must agree on.
    pub fn description(&self) -> String {
        let Self { config, model, parallel, engine, slots_max, .. } = self;
        format!(
            "drystone {}, {:?}, dtype {:?}, {:?}, context_max {:?}, tensor {}, {engine:?}, \
             slots_max {slots_max}",
            env!("CARGO_PKG_VERSION"),
            config.shape,
            model.dtype,
            model.load,
            model.context_max,
            parallel.tensor,
        )
    }
}

/// The ranks of one replica, one thread each, in this process and perhaps in others. Dropping it
/// ends them.
pub struct Group {
    /// Dropped before those that they are given to.
    orders: Orders,
    workers: Vec<Worker>,
    /// Those of other processes, where this one leads.
    remotes: Option<Remotes>,
    /// The first rank of this process.
    first: usize,
    limits: Limits,
    counts: Arc<CollectiveCounts>,
    /// What the ranks compute on, in words.
    backend: String,
    /// Steps that were started and not finished, the oldest first.
    flights: VecDeque<Flight>,
    /// When the last step was done.
    landed: Instant,
    /// Whether steps are started before the one ahead of them is done.
    runs_ahead: bool,
    /// The rank that failed for good, and what it said.
    dead: Option<(usize, String)>,
}

/// A step that was started.
enum Flight {
    /// The ranks' replies are still to come.
    Sent(Instant),
    /// It came to nothing, or something that was called behind it took its replies first.
    Done(Result<StepOutput, Fault>),
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
    /// Starts the ranks and waits until all have loaded their part of the model. Where several
    /// processes were launched, the first calls this and the others [`crate::follow::follow`].
    pub fn start(spec: &GroupSpec<'_>) -> Result<Self, StartError> {
        let backend = Backend::choose(spec)?;
        let Some(launch) = spec.launch else {
            return Ok(Self::build(spec, backend, None, |_| Ok(None))?.0);
        };
        let name = NcclName::new().map_err(|error| StartError::Backend(error.to_string()))?;
        let each = spec.parallel.tensor / launch.processes;
        let mut remotes = Remotes::gather(launch, (each, &spec.description()), &name)?;
        let attend = |give_up: &GiveUp| {
            let attended = remotes.attend(give_up);
            attended.map_err(|error| StartError::Backend(error.to_string()))?;
            Ok(Some(remotes))
        };
        Ok(Self::build(spec, backend, Some((launch, name)), attend)?.0)
    }

    /// The ranks of one process of several that does not lead, and what ends them from outside:
    /// `attend` gets it before they are built.
    pub fn part(
        spec: &GroupSpec<'_>,
        (launch, name): (&Launch, NcclName),
        attend: impl FnOnce(&GiveUp) -> Result<(), StartError>,
    ) -> Result<(Self, GiveUp), StartError> {
        let backend = Backend::choose(spec)?;
        Self::build(spec, backend, Some((launch, name)), |give_up| attend(give_up).map(|()| None))
    }

    fn build(
        spec: &GroupSpec<'_>,
        backend: Backend,
        launched: Option<(&Launch, NcclName)>,
        attend: impl FnOnce(&GiveUp) -> Result<Option<Remotes>, StartError>,
    ) -> Result<(Self, GiveUp), StartError> {
        let (tensor, counts) = (spec.parallel.tensor, Arc::new(CollectiveCounts::default()));
        let (words, runs_ahead) = (backend.to_string(), backend.runs_ahead());
        let source = Arc::new(Source::open(spec, &backend)?);
        let crew = backend.crew(tensor, &source, &counts, launched.map(|(_, name)| name));
        let first = launched.map_or(0, |(launch, _)| launch.process * tensor / launch.processes);
        let others = (attend(&crew.give_up)?, first);
        let group = Self::of(crew.builds, others, source.limits(), counts)?;
        let limits = source.limits();
        Ok((Self { backend: words, runs_ahead, limits, ..group }, crew.give_up))
    }

    /// The group of the ranks that are built so; the first of them is number `first` of all.
    pub(crate) fn of(
        builds: Vec<Build>,
        (remotes, first): (Option<Remotes>, usize),
        limits: Limits,
        counts: Arc<CollectiveCounts>,
    ) -> Result<Self, StartError> {
        let failed = |rank, message| StartError::Rank { rank, message };
        let spawn = |(index, build)| {
            let rank = first + index;
            Worker::spawn(rank, build).map_err(|error| failed(rank, error.to_string()))
        };
        let workers: Vec<_> =
            builds.into_iter().enumerate().map(spawn).collect::<Result<_, _>>()?;
        let mut group = Self {
            orders: Orders::new(&workers),
            workers,
            remotes,
            first,
            limits,
            counts,
            backend: String::new(),
            flights: VecDeque::new(),
            landed: Instant::now(),
            runs_ahead: false,
            dead: None,
        };
        match group.replies() {
            Ok(_) => Ok(group),
            Err(Fault::Dead { rank, message }) => Err(failed(rank, message)),
            Err(Fault::Refused(message)) => Err(failed(first, message)),
        }
    }

    /// The rank that failed for good, and what it said.
    pub fn dead(&self) -> Option<(usize, String)> {
        self.dead.clone()
    }

    /// What there is room for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What the ranks compute on, in words.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Collectives so far.
    pub fn counts(&self) -> &Arc<CollectiveCounts> {
        &self.counts
    }

    /// From now on, steps tell how long the first rank's device stood idle before them.
    pub fn time_idle(&mut self) -> Result<(), Fault> {
        self.call(&Command::TimeIdle)
    }

    /// Has all ranks do one thing, behind the steps in flight.
    fn call(&mut self, command: &Command) -> Result<(), Fault> {
        self.send(command)?;
        for at in 0..self.flights.len() {
            if let Flight::Sent(started) = self.flights[at] {
                self.flights[at] = Flight::Done(self.land(started));
            }
        }
        self.replies().map(drop)
    }

    /// What gives this process's ranks their commands. They cannot end before it is dropped.
    pub fn orders(&self) -> Orders {
        Orders::new(&self.workers)
    }

    /// Gives all ranks a command; each will have one reply.
    pub fn send(&mut self, command: &Command) -> Result<(), Fault> {
        if let Some((rank, message)) = self.dead.clone() {
            return Err(Fault::Dead { rank, message });
        }
        if let Some(remotes) = &mut self.remotes {
            remotes.send(command);
        }
        self.orders.give(command);
        Ok(())
    }

    /// Waits for the oldest step that was sent. Its time is from the end of the one before, where
    /// it was started earlier.
    fn land(&mut self, started: Instant) -> Result<StepOutput, Fault> {
        let output = self.replies()?;
        let elapsed = started.max(self.landed).elapsed();
        self.landed = Instant::now();
        Ok(StepOutput { elapsed, ..output })
    }

    /// One reply of every rank: the first rank's, or the worst failure.
    pub fn replies(&mut self) -> Result<StepOutput, Fault> {
        if let Some((rank, message)) = self.dead.clone() {
            return Err(Fault::Dead { rank, message });
        }
        let mut output = StepOutput::default();
        let mut worst: Option<(Failure, usize)> = None;
        for (index, worker) in self.workers.iter().enumerate() {
            match worker.reply() {
                Ok(reply) if index == 0 => output = reply,
                Ok(_) => {}
                Err(failure) => worst = worst.max(Some((failure, self.first + index))),
            }
        }
        if let Some(remotes) = &mut self.remotes {
            if matches!(worst, Some((Failure::Follower(_) | Failure::Dead(_), _))) {
                // The others wait for a rank that is gone.
                remotes.hang_up();
            }
            worst = remotes.replies().into_iter().map(Some).fold(worst, Option::max);
        }
        match worst {
            None => Ok(output),
            Some((Failure::Refused(message), _)) => Err(Fault::Refused(message)),
            Some((Failure::Follower(message) | Failure::Dead(message), rank)) => {
                self.dead = Some((rank, message.clone()));
                Err(Fault::Dead { rank, message })
            }
        }
    }
}

impl Executor for Group {
    fn runs_ahead(&self) -> bool {
        self.runs_ahead
    }

    fn start(&mut self, batch: Arc<Batch>) {
        let start = Instant::now();
        let (rows, rows_max) = (batch.tokens.len(), self.limits.rows_max);
        let sent = if rows > rows_max {
            let why = format!("a batch of {rows} rows; batch_tokens_max is {rows_max}");
            Err(Fault::Refused(why))
        } else {
            self.send(&Command::Run(batch))
        };
        let flight = sent.map_or_else(|fault| Flight::Done(Err(fault)), |()| Flight::Sent(start));
        self.flights.push_back(flight);
    }

    fn finish(&mut self) -> Result<StepOutput, Fault> {
        let flight = self.flights.pop_front().expect("a step was started: this is a bug");
        match flight {
            Flight::Sent(started) => self.land(started),
            Flight::Done(output) => output,
        }
    }

    fn load(&mut self, slot: Slot, generation: Arc<Generation>) -> Result<(), Fault> {
        match self.call(&Command::Load(slot, generation)) {
            Ok(()) => Ok(()),
            Err(fault @ Fault::Refused(_)) => {
                self.unload(slot)?;
                Err(fault)
            }
            Err(fault) => Err(fault),
        }
    }

    fn unload(&mut self, slot: Slot) -> Result<(), Fault> {
        self.call(&Command::Unload(slot))
    }
}

#[cfg(test)]
mod tests;
