//! A group whose ranks answer from a script.

use std::sync::Mutex;
use std::time::Duration;

use collective::comm::Comm;
use collective::threads::ThreadComm;
use contract::adapter::{GenerationId, Kind};
use contract::counts::Purpose;
use contract::step::Answer;
use kernels::cpu::Cpu;
use model::error::{Error, Result};

use super::*;
use crate::worker::Work;

/// A rank that writes down what it is asked, and fails when told.
struct Scripted {
    comm: ThreadComm,
    fails: Fails,
    log: Arc<Mutex<Vec<String>>>,
    started: VecDeque<u32>,
}

/// Tokens of steps that are something special.
const REFUSED: u32 = 70;
const SLOW: u32 = 80;

fn step(token: u32) -> Arc<Batch> {
    Arc::new(Batch { tokens: vec![token], ..Batch::default() })
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
        let rank = Comm::<Cpu>::rank(&self.comm);
        self.log.lock().unwrap().push(format!("{what} {rank}"));
    }
}

impl Work for Scripted {
    fn start(&mut self, batch: &Arc<Batch>) -> Result<()> {
        if batch.tokens == [REFUSED] {
            return Err(Error::Step("not this one".to_owned()));
        }
        match self.fails {
            Fails::Run => return Err(kernels::error::Error::Device("it burns".into()).into()),
            Fails::Panic => panic!("out of coffee"),
            _ => {}
        }
        Comm::<Cpu>::all_reduce_sum(&mut self.comm, &mut vec![1.0], 1, Purpose::Base)?;
        self.note("start");
        let token = batch.tokens.first().map_or(0, |token| token + 1);
        self.started.push_back(token);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.started.len()
    }

    /// A step that asks for it is not done before the next is started.
    fn is_done(&mut self) -> Result<bool> {
        Ok(self.started[0] != SLOW + 1 || self.started.len() > 1)
    }

    fn answer(&mut self) -> Result<StepOutput> {
        self.note("answer");
        let token = self.started.pop_front().unwrap();
        let answers = vec![Answer { token, ..Answer::default() }];
        Ok(StepOutput { answers, ..StepOutput::default() })
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
        let log = Arc::clone(&log);
        let rank = Scripted { comm, fails, log, started: VecDeque::new() };
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
fn a_step_is_started_while_the_one_before_is_in_flight() {
    let (mut group, log) = group(Fails::Never);
    let token = |output: Result<StepOutput, Fault>| output.unwrap().answers[0].token;
    for _ in 0..3 {
        // It would never be done without the next.
        group.start(step(SLOW));
        group.start(step(5));
        assert_eq!(token(group.finish()), SLOW + 1);
        group.start(step(SLOW));
        assert_eq!(token(group.finish()), 6);
        group.start(step(7));
        assert_eq!((token(group.finish()), token(group.finish())), (SLOW + 1, 8));
    }
    let log = log.lock().unwrap();
    let first: Vec<_> = log.iter().filter(|line| line.ends_with('0')).take(3).collect();
    assert_eq!(first, ["start 0", "start 0", "answer 0"]);
}

#[test]
fn what_is_called_behind_steps_leaves_them_their_answers() {
    let (mut group, log) = group(Fails::Never);
    group.start(step(1));
    group.start(step(2));
    group.load(Slot(0), generation()).unwrap();
    group.unload(Slot(0)).unwrap();
    let answers = [group.finish(), group.finish()].map(|it| it.unwrap().answers[0].token);
    assert_eq!(answers, [2, 3]);
    let log = log.lock().unwrap();
    let loads = log.iter().filter(|line| line.contains("load") && line.ends_with('1'));
    assert_eq!(loads.collect::<Vec<_>>(), ["load 1", "unload 1"]);
}

#[test]
fn a_step_refused_behind_another_is_refused_in_its_turn() {
    let (mut group, _) = group(Fails::Never);
    for refused in [step(REFUSED), Arc::new(Batch { tokens: vec![0; 5], ..Batch::default() })] {
        group.start(step(1));
        group.start(refused);
        assert_eq!(group.finish().unwrap().answers[0].token, 2);
        assert!(matches!(group.finish(), Err(Fault::Refused(_))));
    }
    assert!(group.run(step(3)).is_ok());
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
        group.start(Arc::default());
        group.start(Arc::default());
        for after in [group.finish(), group.finish(), group.run(Arc::default())] {
            let Err(fault) = after else { panic!("ran") };
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
                started: VecDeque::new(),
            }))
        })
    };
    let limits = Limits { blocks: 1, positions_max: 16, rows_max: 4 };
    let Err(error) = Group::of(vec![build(0), build(1)], (None, 0), limits, Arc::default()) else {
        panic!("started")
    };
    assert_eq!(error.to_string(), "rank 1 did not start: panicked: no device 1");
}
