//! A leader and a follower in one process, over a real connection, with ranks that only talk.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use contract::adapter::{Exchange, Generation, GenerationId, Kind, LayerPairs, LocalPair};
use contract::adapter::{PairShape, Slot};
use contract::step::{Answer, Batch, Executor, StepOutput};
use model::error::{Error, Result as ModelResult};

use super::*;
use crate::group::Limits;
use crate::remote::Remotes;
use crate::worker::{Build, Work};

const LIMITS: Limits = Limits { blocks: 1, positions_max: 16, rows_max: 4 };

/// A rank that answers its own number and writes down what it is asked.
struct Talker {
    rank: usize,
    fails: bool,
    log: Log,
    started: VecDeque<Arc<Batch>>,
}

const SLOW: u32 = 80;

type Log = Arc<Mutex<Vec<String>>>;

impl Talker {
    fn build(rank: usize, fails: bool, log: &Log) -> Vec<Build> {
        let talker = Self { rank, fails, log: Arc::clone(log), started: VecDeque::new() };
        vec![Box::new(move || Ok(Box::new(talker)))]
    }

    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

impl Work for Talker {
    fn start(&mut self, batch: &Arc<Batch>) -> ModelResult<()> {
        assert!(!self.fails, "out of tea");
        self.note(format!("{} runs {:?}", self.rank, batch.tokens));
        self.started.push_back(Arc::clone(batch));
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.started.len()
    }

    /// This step is not done before the next is started.
    fn is_done(&mut self) -> ModelResult<bool> {
        Ok(self.started[0].tokens != [SLOW] || self.started.len() > 1)
    }

    fn answer(&mut self) -> ModelResult<StepOutput> {
        self.started.pop_front();
        let answers = vec![Answer { token: self.rank as u32, ..Answer::default() }];
        Ok(StepOutput { answers, ..StepOutput::default() })
    }

    fn load(&mut self, slot: Slot, generation: &Generation) -> ModelResult<()> {
        let held = generation.ranks.iter().map(|layers| layers[0][0].is_some());
        self.note(format!("{} loads {slot:?} with {:?}", self.rank, held.collect::<Vec<_>>()));
        if generation.name == "odd" && self.rank == 1 {
            return Err(Error::Generation("odd".to_owned()));
        }
        Ok(())
    }

    fn unload(&mut self, slot: Slot) {
        self.note(format!("{} unloads {slot:?}", self.rank));
    }
}

fn generation(name: &str) -> Arc<Generation> {
    let shape = PairShape {
        input: 1,
        output: 0..1,
        shrink_rank: 1,
        expand_rank: 1,
        a_blocks: 1,
        b_blocks: 1,
        exchange: Exchange::None,
    };
    let pair = LocalPair { shape, a: vec![1.0], b: vec![2.0] };
    let layer: LayerPairs = std::array::from_fn(|_| Some(pair.clone()));
    Arc::new(Generation {
        id: GenerationId([1; 32]),
        name: name.to_owned(),
        kind: Kind::Plain,
        lora_rank: 1,
        ranks: vec![vec![layer.clone()], vec![layer]],
    })
}

/// The first of two processes, and where the second finds it.
fn launch() -> Launch {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let leader = free.ip().to_string();
    Launch { process: 0, processes: 2, local: None, leader, port: free.port() }
}

/// Two processes of one rank each.
struct Pair {
    leader: Group,
    follower: JoinHandle<Result<(), StartError>>,
    log: Log,
    /// How often the leader's rank was freed from outside.
    freed: Arc<AtomicUsize>,
}

fn pair(follower_fails: bool) -> Pair {
    let (launch, log) = (launch(), Log::default());
    let second = Launch { process: 1, ..launch.clone() };
    let builds = Talker::build(1, follower_fails, &log);
    let follower = thread::spawn(move || {
        let (stream, name) = meet(&second, "this").unwrap();
        assert_eq!(name.bytes(), [7; 128]);
        let group = Group::of(builds, (None, 1), LIMITS, Arc::default())?;
        obey(stream, (&second, 1), Ok((group, Arc::new(|| ()))))
    });
    let name = NcclName::from_bytes([7; 128]);
    let mut remotes = Remotes::gather(&launch, (1, "this"), &name).unwrap();
    let freed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&freed);
    let give_up: GiveUp = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    remotes.attend(&give_up).unwrap();
    let builds = Talker::build(0, false, &log);
    let leader = Group::of(builds, (Some(remotes), 0), LIMITS, Arc::default()).unwrap();
    Pair { leader, follower, log, freed }
}

#[test]
fn commands_reach_all_processes_and_the_first_answers() {
    let Pair { mut leader, follower, log, .. } = pair(false);
    let batch = Batch { tokens: vec![5, 6], ..Batch::default() };
    let output = leader.run(Arc::new(batch)).unwrap();
    assert_eq!(output.answers, [Answer::default()], "rank 0 answers 0");
    leader.load(Slot(3), generation("even")).unwrap();
    drop(leader);
    assert!(follower.join().unwrap().is_ok(), "a leader that ends is no failure");
    let mut log = log.lock().unwrap().clone();
    log.sort();
    let expected = [
        "0 loads Slot(3) with [true, true]",
        "0 runs [5, 6]",
        "1 loads Slot(3) with [false, true]",
        "1 runs [5, 6]",
    ];
    assert_eq!(log, expected);
}

#[test]
fn steps_run_ahead_in_all_processes() {
    let Pair { mut leader, follower, .. } = pair(false);
    let batch = |token| Arc::new(Batch { tokens: vec![token], ..Batch::default() });
    leader.start(batch(SLOW));
    for _ in 0..3 {
        leader.start(batch(5));
        assert_eq!(leader.finish().unwrap().answers, [Answer::default()]);
        leader.start(batch(SLOW));
        assert_eq!(leader.finish().unwrap().answers, [Answer::default()]);
    }
    leader.start(batch(5));
    leader.load(Slot(3), generation("even")).unwrap();
    assert!(leader.finish().is_ok() && leader.finish().is_ok());
    drop(leader);
    assert!(follower.join().unwrap().is_ok());
}

#[test]
fn what_one_process_refuses_happens_in_none() {
    let Pair { mut leader, log, .. } = pair(false);
    let Err(Fault::Refused(why)) = leader.load(Slot(0), generation("odd")) else {
        panic!("loaded")
    };
    assert_eq!(why, "odd");
    let unloads = |log: &Vec<String>| log.iter().filter(|line| line.contains("unloads")).count();
    assert_eq!(unloads(&log.lock().unwrap()), 2);
    assert!(leader.run(Arc::default()).is_ok(), "a refusal harms nobody");
}

#[test]
fn a_rank_that_fails_elsewhere_is_named_and_ours_are_freed() {
    let Pair { mut leader, follower, freed, .. } = pair(true);
    leader.start(Arc::default());
    leader.start(Arc::default());
    for after in [leader.finish(), leader.finish(), leader.run(Arc::default())] {
        let Err(Fault::Dead { rank: 1, message }) = after else { panic!("ran") };
        assert!(message.contains("out of tea"), "{message}");
    }
    let Err(StartError::Rank { rank: 1, message }) = follower.join().unwrap() else {
        panic!("ended well")
    };
    assert!(message.contains("out of tea"), "{message}");
    drop(leader);
    // Ranks are freed by a thread of their own.
    let patience = Instant::now() + Duration::from_secs(5);
    while freed.load(Ordering::SeqCst) == 0 && Instant::now() < patience {
        thread::yield_now();
    }
    assert_eq!(freed.load(Ordering::SeqCst), 1);
}

#[test]
fn a_process_that_vanishes_ends_the_group() {
    let launch = launch();
    let second = Launch { process: 1, ..launch.clone() };
    let follower = thread::spawn(move || {
        let (mut stream, _) = meet(&second, "this").unwrap();
        let up: RemoteReply = None;
        wire::send(&mut stream, |out| up.put(out)).unwrap();
        wire::receive::<Command>(&mut stream).unwrap();
    });
    let name = NcclName::from_bytes([7; 128]);
    let mut remotes = Remotes::gather(&launch, (1, "this"), &name).unwrap();
    let give_up: GiveUp = Arc::new(|| ());
    remotes.attend(&give_up).unwrap();
    let builds = Talker::build(0, false, &Log::default());
    let mut leader = Group::of(builds, (Some(remotes), 0), LIMITS, Arc::default()).unwrap();
    let Err(Fault::Dead { rank: 1, message }) = leader.run(Arc::default()) else { panic!("ran") };
    assert_eq!(message, "its process has gone, or the connection to it");
    follower.join().unwrap();
}

#[test]
fn a_process_built_of_something_else_is_refused_and_another_may_come() {
    let launch = launch();
    let second = Launch { process: 1, ..launch.clone() };
    let follower = thread::spawn(move || {
        let why = meet(&second, "that").err().unwrap().to_string();
        assert!(why.contains("built of that, the first of this"), "{why}");
        let stranger = Launch { process: 2, ..second.clone() };
        let why = meet(&stranger, "this").err().unwrap().to_string();
        assert!(why.contains("process 2"), "{why}");
        drop(meet(&second, "this").unwrap());
    });
    let name = NcclName::from_bytes([7; 128]);
    assert!(Remotes::gather(&launch, (1, "this"), &name).is_ok());
    follower.join().unwrap();
}

#[test]
fn a_leader_that_dies_before_it_has_said_anything_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for says in [&b""[..], b"command"] {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut leader, _) = listener.accept().unwrap();
        let (told, news) = sync_channel(1);
        watch(ours.try_clone().unwrap(), Arc::new(move || told.send(()).unwrap())).unwrap();
        std::io::Write::write_all(&mut leader, says).unwrap();
        drop(leader);
        // Where a command came, the watch ends without news, and nothing of the command is gone.
        let noticed = news.recv_timeout(Duration::from_secs(20)).is_ok();
        assert_eq!(noticed, says.is_empty());
        let mut heard = Vec::new();
        std::io::Read::read_to_end(&mut { ours }, &mut heard).unwrap();
        assert_eq!(heard, says);
    }
}
