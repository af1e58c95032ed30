//! The ranks of one replica as one executor.

use std::sync::Arc;
use std::time::Instant;

use config::launch::Launch;
use config::settings;
use contract::adapter::{Generation, Slot};
use contract::counts::CollectiveCounts;
use contract::step::{Answer, Batch, Executor, Fault, StepOutput};
use kernels::cuda::NcclName;
use model::blueprint::Progress;
use model::hf::ModelConfig;

use crate::backend::{Backend, GiveUp};
use crate::cache::Cache;
use crate::error::StartError;
use crate::remote::Remotes;
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
    workers: Vec<Worker>,
    /// Those of other processes, where this one leads.
    remotes: Option<Remotes>,
    /// The first rank of this process.
    first: usize,
    limits: Limits,
    counts: Arc<CollectiveCounts>,
    /// What the ranks compute on, in words.
    backend: String,
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
        let words = backend.to_string();
        let source = Arc::new(Source::open(spec, &backend)?);
        let crew = backend.crew(tensor, &source, &counts, launched.map(|(_, name)| name));
        let first = launched.map_or(0, |(launch, _)| launch.process * tensor / launch.processes);
        let others = (attend(&crew.give_up)?, first);
        let group = Self::of(crew.builds, others, source.limits(), counts)?;
        Ok((Self { backend: words, limits: source.limits(), ..group }, crew.give_up))
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
        let workers = builds.into_iter().enumerate().map(spawn).collect::<Result<_, _>>()?;
        let backend = String::new();
        let mut group = Self { workers, remotes, first, limits, counts, backend, dead: None };
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

    /// Has all ranks do one thing; the first rank's answers.
    pub fn call(&mut self, command: &Command) -> Result<Vec<Answer>, Fault> {
        if let Some((rank, message)) = self.dead.clone() {
            return Err(Fault::Dead { rank, message });
        }
        if let Some(remotes) = &mut self.remotes {
            remotes.send(command);
        }
        self.workers.iter().for_each(|worker| worker.send(command.clone()));
        self.replies()
    }

    /// One reply of every rank: the first rank's answers, or the worst failure.
    fn replies(&mut self) -> Result<Vec<Answer>, Fault> {
        let mut answers = Vec::new();
        let mut worst: Option<(Failure, usize)> = None;
        for (index, worker) in self.workers.iter().enumerate() {
            match worker.reply() {
                Ok(reply) if index == 0 => answers = reply,
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use collective::comm::Comm;
    use collective::threads::ThreadComm;
    use contract::adapter::{GenerationId, Kind};
    use contract::counts::Purpose;
    use model::error::{Error, Result};

    use super::*;
    use crate::worker::Work;

    /// A rank that writes down what it is asked, and fails when told.
    struct Scripted {
        comm: ThreadComm,
        fails: Fails,
        log: Arc<Mutex<Vec<String>>>,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Fails {
        Never,
        Load,
        Run,
        Panic,
    }

    impl Scripted {
        fn note(&self, what: &str) {
            let rank = Comm::<Vec<f32>>::rank(&self.comm);
            self.log.lock().unwrap().push(format!("{what} {rank}"));
        }
    }

    impl Work for Scripted {
        fn run(&mut self, _: &Arc<Batch>) -> Result<Vec<Answer>> {
            match self.fails {
                Fails::Run => return Err(kernels::error::Error::Device("it burns".into()).into()),
                Fails::Panic => panic!("out of coffee"),
                _ => {}
            }
            self.comm.all_reduce_sum(&mut vec![1.0], 1, Purpose::Base)?;
            let token = Comm::<Vec<f32>>::rank(&self.comm) as u32;
            Ok(vec![Answer { token, ..Answer::default() }])
        }

        fn load(&mut self, _: Slot, _: &Generation) -> Result<()> {
            if self.fails == Fails::Load {
                let full = kernels::error::Error::Memory { what: "a pair", bytes: 7 };
                return Err(Error::Kernel(full));
            }
            self.note("load");
            Ok(())
        }

        fn unload(&mut self, _: Slot) {
            self.note("unload");
        }
    }

    /// Three ranks of which the second fails as told, and what they write down.
    fn group(fails: Fails) -> (Group, Arc<Mutex<Vec<String>>>) {
        let (counts, log) = (Arc::default(), Arc::new(Mutex::new(Vec::new())));
        let comms = ThreadComm::group(3, Duration::from_secs(20), &counts);
        let build = |(rank, comm)| -> Build {
            let fails = if rank == 1 { fails } else { Fails::Never };
            let rank = Scripted { comm, fails, log: Arc::clone(&log) };
            Box::new(move || Ok(Box::new(rank)))
        };
        let builds = comms.into_iter().enumerate().map(build).collect();
        let limits = Limits { blocks: 1, positions_max: 16, rows_max: 4 };
        (Group::of(builds, (None, 0), limits, counts).unwrap(), log)
    }

    fn generation() -> Arc<Generation> {
        let id = GenerationId([0; 32]);
        let name = "any".to_owned();
        Arc::new(Generation { id, name, kind: Kind::Plain, lora_rank: 1, ranks: Vec::new() })
    }

    #[test]
    fn the_first_rank_answers() {
        let (mut group, _) = group(Fails::Never);
        let output = group.run(Arc::default()).unwrap();
        assert_eq!(output.answers, [Answer::default()]);
        assert_eq!(group.counts().get(Purpose::Base), 1);
    }

    #[test]
    fn a_load_happens_on_all_ranks_or_on_none() {
        let (mut group, log) = group(Fails::Load);
        let Err(Fault::Refused(why)) = group.load(Slot(0), generation()) else { panic!("loaded") };
        assert_eq!(why, "out of memory: a pair needs 7 bytes");
        let mut log = log.lock().unwrap().clone();
        log.sort();
        assert_eq!(log, ["load 0", "load 2", "unload 0", "unload 1", "unload 2"]);
        assert!(group.run(Arc::default()).is_ok(), "a refusal harms nobody");
    }

    #[test]
    fn a_rank_that_fails_is_named_and_its_peers_are_free() {
        for (fails, expected) in [(Fails::Run, "it burns"), (Fails::Panic, "out of coffee")] {
            let (mut group, _) = group(fails);
            for _ in 0..2 {
                let Err(fault) = group.run(Arc::default()) else { panic!("ran") };
                let Fault::Dead { rank: 1, message } = fault else { panic!("{fault}") };
                assert!(message.contains(expected), "{message}");
            }
        }
    }

    #[test]
    fn a_rank_that_cannot_be_built_is_named() {
        let build = |rank: usize| -> Build {
            Box::new(move || {
                assert!(rank == 0, "no device {rank}");
                Ok(Box::new(Scripted {
                    comm: ThreadComm::group(1, Duration::ZERO, &Arc::default()).remove(0),
                    fails: Fails::Never,
                    log: Arc::default(),
                }))
            })
        };
        let limits = Limits { blocks: 1, positions_max: 16, rows_max: 4 };
        let Err(error) = Group::of(vec![build(0), build(1)], (None, 0), limits, Arc::default())
        else {
            panic!("started")
        };
        assert_eq!(error.to_string(), "rank 1 did not start: panicked: no device 1");
    }
}
