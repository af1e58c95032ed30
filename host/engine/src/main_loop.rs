//! The engine's thread: receive, schedule, start, settle.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::Instant;

use adapters::catalogue::Entry;
use adapters::residency::{self, Residency};
use contract::request::{Finish, Request};
use contract::step::{Executor, Fault, StepOutput};
use slab::Slab;

use crate::ahead::Flight;
use crate::batch::Batches;
use crate::handle::{Parts, StartError};
use crate::load::Shared;
use crate::loader::{Loaded, Loader};
use crate::residents::{Leases, Residents};
use crate::scheduler::{Limits, Plan, Scheduler};
use crate::sequence::Sequence;
use crate::settle::Settling;
use crate::stream::Stream;

/// What the engine's thread is told.
pub enum Command {
    /// A new sequence.
    Submit {
        /// What was asked.
        request: Request,
        /// The adapter it names.
        entry: Option<Arc<Entry>>,
        /// Where its output goes.
        stream: Box<Stream>,
    },
    /// The loader's answer.
    Loaded(Loaded),
    /// Something changed elsewhere: look again.
    Wake,
    /// End.
    Stop,
}

/// Prompt logprobs in a step at most: 256 rows of a vocabulary of 128k take 128 MiB.
const SCORES_MAX: usize = 256;

/// Admissions that may overtake a sequence that waits for a slot.
const OVERTAKEN_MAX: u32 = 64;

/// Owner of everything that is open: sequences, blocks, adapters and the ranks.
pub struct MainLoop {
    commands: Receiver<Command>,
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    plan: Plan,
    batches: Batches,
    /// Steps that are not settled yet, the oldest first: two at most.
    flights: VecDeque<Flight>,
    /// When the last step was done.
    done: Instant,
    streams: Slab<Box<Stream>>,
    residents: Residents,
    settling: Settling,
    shared: Arc<Shared>,
    block_tokens: usize,
    slots_max: usize,
    /// Sequences came, went or changed places since metrics were told.
    moved: bool,
}

impl MainLoop {
    /// Everything at rest. `channel` is how others reach the loop.
    pub fn new(
        parts: Parts,
        shared: Arc<Shared>,
        channel: (SyncSender<Command>, Receiver<Command>),
    ) -> Result<Self, StartError> {
        let (sender, commands) = channel;
        let answer = move |loaded| sender.send(Command::Loaded(loaded)).is_ok();
        let loader = Loader::start(Arc::clone(&parts.catalogue), answer)?;
        let residency = Residency::new(residency::Limits {
            slots_max: parts.slots_max,
            host_bytes_max: usize::try_from(parts.host_bytes).unwrap_or(usize::MAX),
        });
        let metrics = Arc::clone(&parts.metrics.adapters);
        Ok(Self {
            commands,
            executor: parts.executor,
            scheduler: Scheduler::new(limits(&parts.settings, parts.blocks)),
            plan: Plan::default(),
            batches: Batches::default(),
            flights: VecDeque::new(),
            done: Instant::now(),
            streams: Slab::new(),
            residents: Residents::new(residency, parts.catalogue, loader, metrics),
            settling: Settling::new(parts.text, parts.metrics),
            shared,
            block_tokens: parts.settings.block_tokens,
            slots_max: parts.slots_max,
            moved: true,
        })
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        self.place_pinned();
        let mut idle = false;
        while self.receive(idle) {
            self.retire();
            let started = self.may_plan() && self.plan();
            let ahead = started && self.executor.runs_ahead();
            let settles = self.flights.len() > usize::from(ahead);
            if settles {
                self.settle();
            }
            idle = !started && !settles && self.settling.ended == 0;
        }
        while !self.flights.is_empty() {
            self.settle();
            self.retire();
        }
        self.fail_all("the server is shutting down");
    }

    /// Whether the next step can be planned before the one in flight is settled.
    fn may_plan(&self) -> bool {
        self.flights.back().is_none_or(|flight| flight.may_be_followed(&self.scheduler))
    }

    /// Plans the next step and starts it, if there is anything to do.
    fn plan(&mut self) -> bool {
        self.sweep();
        self.schedule();
        self.publish();
        let some = !self.plan.shares.is_empty();
        if some {
            self.start();
        }
        some
    }

    /// Takes what was sent; waits for something when there is nothing else to do. False: stop.
    fn receive(&mut self, idle: bool) -> bool {
        let mut command =
            if idle { self.commands.recv().ok() } else { self.commands.try_recv().ok() };
        while let Some(received) = command {
            match received {
                Command::Submit { request, entry, stream } => self.open(request, entry, stream),
                Command::Loaded(loaded) => self.loaded(loaded),
                Command::Wake => {}
                Command::Stop => return false,
            }
            command = self.commands.try_recv().ok();
        }
        true
    }

    fn open(&mut self, request: Request, entry: Option<Arc<Entry>>, mut stream: Box<Stream>) {
        if let Some(message) = self.shared.dead.get() {
            stream.finish(Finish::Failed(message.clone()), &mut self.settling);
            return self.settling.wake();
        }
        if let Some(entry) = &entry {
            self.residents.prefetch(entry);
        }
        self.moved = true;
        let key = self.streams.insert(stream);
        self.scheduler.enqueue(Sequence::new(key, request, entry));
    }

    fn loaded(&mut self, loaded: Loaded) {
        let entry = Arc::clone(&loaded.entry);
        if let Err(message) = self.residents.loaded(loaded) {
            let waits = |it: &&Sequence| it.lease.is_none() && it.adapter.as_ref() == Some(&entry);
            for sequence in self.scheduler.waiting().filter(waits) {
                let finish = Finish::Failed(message.clone());
                self.streams[sequence.key].finish(finish, &mut self.settling);
            }
        }
        self.moved = true;
        self.place_pinned();
    }

    fn place_pinned(&mut self) {
        if let Err(fault) = self.residents.place_pinned(&mut *self.executor) {
            self.die(&fault);
        }
    }

    /// Lets go of what ended and of what nobody waits for any more.
    fn retire(&mut self) {
        if !self.shared.cancelled.swap(false, Ordering::AcqRel) && self.settling.ended == 0 {
            return;
        }
        let (streams, metrics) = (&mut self.streams, &self.settling.metrics);
        self.scheduler.end(|key| streams[key].is_over());
        let left = self.scheduler.retire(|key| streams.remove(key).close(metrics));
        self.moved = true;
        self.settling.ended = left;
        self.settling.wake();
    }

    /// Frees what belonged to adapters that are gone, once their last sequence is.
    fn sweep(&mut self) {
        let changed = self.shared.catalogue_changed.swap(false, Ordering::AcqRel);
        if changed {
            self.residents.catalogue_changed();
            self.place_pinned();
        }
        if !(self.residents.is_stale() && (changed || self.moved)) {
            return;
        }
        let open = self.scheduler.running().iter().chain(self.scheduler.waiting());
        let open: BTreeSet<u64> = open.filter_map(|it| Some(it.adapter.as_ref()?.id)).collect();
        let executor = &mut *self.executor;
        match self.residents.sweep(executor, |entry| open.contains(&entry.id)) {
            Ok(()) => self.place_pinned(),
            Err(fault) => self.die(&fault),
        }
    }

    fn schedule(&mut self) {
        let mut leases = Leases::new(&mut self.residents, &mut *self.executor);
        self.scheduler.schedule(&mut leases, &mut self.plan);
        if let Some(fault) = leases.fault {
            return self.die(&fault);
        }
        let metrics = Arc::clone(&self.settling.metrics);
        for admission in &self.plan.admitted {
            self.streams[admission.key].admitted(admission, &metrics);
        }
        self.moved |= !(self.plan.admitted.is_empty() && self.plan.preempted.is_empty());
        metrics.preemptions.inc_by(self.plan.preempted.len() as u64);
        for (key, reason) in self.plan.refused.drain(..) {
            self.streams[key].finish(Finish::Failed(reason), &mut self.settling);
        }
    }

    fn start(&mut self) {
        let (shares, running) = (&self.plan.shares, self.scheduler.running());
        let batch = self.batches.build(shares, running, self.block_tokens);
        self.flights.push_back(Flight::new(shares, &batch));
        self.executor.start(batch);
        self.scheduler.begin(&self.plan.shares);
    }

    /// Waits for the oldest step in flight, and gives its sequences their answers.
    fn settle(&mut self) {
        let Some(flight) = self.flights.pop_front() else { return };
        let output = self.executor.finish();
        self.time(&flight);
        match output.and_then(|output| complete(output, flight.queries)) {
            Ok(output) => {
                self.settling.settle(&flight.shares, output, &mut self.scheduler, &mut self.streams)
            }
            Err(Fault::Refused(reason)) => self.fail_step(&flight, &reason),
            Err(fault) => self.die(&fault),
        }
    }

    /// A step's time is from the end of the one before, where it was started earlier.
    fn time(&mut self, flight: &Flight) {
        let (now, metrics) = (Instant::now(), &self.settling.metrics);
        let elapsed = now - flight.started.max(self.done);
        self.done = now;
        metrics.step_seconds.observe(elapsed.as_secs_f64());
        metrics.iteration_tokens.observe(flight.rows as f64);
    }

    /// The ranks are unharmed, but this batch is not to be had: its sequences end.
    fn fail_step(&mut self, flight: &Flight, reason: &str) {
        tracing::error!(reason, "the ranks refused a step");
        for share in &flight.shares {
            self.scheduler.fail(share);
            let finish = Finish::Failed(reason.to_owned());
            self.streams[share.key].finish(finish, &mut self.settling);
        }
        self.settling.wake();
    }

    /// The ranks are lost: all that is open fails, and so will all that comes.
    fn die(&mut self, fault: &Fault) {
        tracing::error!(%fault, "the engine cannot go on");
        self.shared.dead.get_or_init(|| fault.to_string());
        self.settling.metrics.dead.set(1);
        self.plan.shares.clear();
        self.flights.clear();
        self.scheduler.abandon();
        self.fail_all(&fault.to_string());
    }

    fn fail_all(&mut self, message: &str) {
        for (_, stream) in &mut self.streams {
            stream.finish(Finish::Failed(message.to_owned()), &mut self.settling);
        }
        self.retire();
        self.publish();
    }

    fn publish(&mut self) {
        let (running, waiting) = (self.scheduler.running().len(), self.scheduler.waiting().len());
        let pool = self.scheduler.pool();
        let used = pool.total() - pool.available();
        self.shared.running.store(running, Ordering::Relaxed);
        self.shared.blocks_used.store(used, Ordering::Relaxed);
        let metrics = &self.settling.metrics;
        metrics.running.set(running as i64);
        metrics.waiting.set(waiting as i64);
        metrics.kv_cache_usage.set(used as f64 / pool.total() as f64);
        self.residents.publish(&self.shared);
        self.publish_in_use();
    }

    /// Tells which adapters have open sequences, when that may have changed.
    fn publish_in_use(&mut self) {
        if !mem::take(&mut self.moved) {
            return;
        }
        let running = names(self.scheduler.running().iter());
        let waiting = names(self.scheduler.waiting());
        self.settling.metrics.adapters.set_in_use(self.slots_max, running, waiting);
    }
}

impl Drop for MainLoop {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.dead.get_or_init(|| "the engine's thread panicked".to_owned());
            self.settling.metrics.dead.set(1);
        }
    }
}

/// Names of the adapters of some sequences, each once.
fn names<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> Vec<String> {
    let adapters = sequences.filter_map(|it| it.adapter.as_deref());
    let names: BTreeSet<&str> = adapters.map(|adapter| adapter.name.as_str()).collect();
    names.into_iter().map(str::to_owned).collect()
}

fn limits(settings: &config::settings::Engine, blocks: usize) -> Limits {
    Limits {
        blocks,
        block_tokens: settings.block_tokens,
        batch_tokens_max: settings.batch_tokens_max,
        sequences_max: settings.sequences_max,
        prefix_cache: settings.prefix_cache,
        scores_max: SCORES_MAX,
        overtaken_max: OVERTAKEN_MAX,
    }
}

/// Ranks that answer something else than they were asked cannot be trusted with more.
fn complete(output: StepOutput, queries: usize) -> Result<StepOutput, Fault> {
    let answers = output.answers.len();
    match answers == queries {
        true => Ok(output),
        false => {
            Err(Fault::Dead { rank: 0, message: format!("{answers} answers to {queries} queries") })
        }
    }
}
