//! A world for the scheduler's tests: adapters that take time to load, a KV cache that remembers
//! what was written into it, and draws that depend on all that a sequence has seen.
//!
//! Every step checks what must always hold, so a test only has to say what happens.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use adapters::catalogue::Entry;
use adapters::residency::{self, Need, Residency, Wait};
use contract::adapter::{Generation, GenerationId, Kind};
use contract::request::Request;
use contract::step::{Batch, BlockId, Span};

use crate::ahead::Flight;
use crate::batch::Batches;
use crate::scheduler::{Leasing, Limits, Plan, Scheduler, Share, Slots};
use crate::sequence::{Key, Sequence};

pub const VOCAB: u32 = 3;

/// What the scheduler runs in.
pub struct World {
    pub scheduler: Scheduler,
    pub limits: Limits,
    pub plan: Plan,
    pub adapters: Adapters,
    pub steps: usize,
    /// What lies at each position of each block.
    cache: HashMap<(BlockId, usize), u64>,
    /// Outputs of sequences that ended by themselves.
    pub outputs: BTreeMap<Key, Vec<u32>>,
    /// The step in which each was first admitted.
    pub admitted: BTreeMap<Key, usize>,
    /// Prompt positions whose logprobs were computed, in order.
    pub scored: BTreeMap<Key, Vec<usize>>,
    /// Sequences of the last plan with their rows, in order.
    pub rows: Vec<(Key, usize)>,
    /// Whether each step is started before the one ahead of it is settled.
    pub runs_ahead: bool,
    batches: Batches,
    flights: VecDeque<Flight>,
    /// What the steps in flight drew.
    drawn: VecDeque<Vec<u32>>,
    /// Prompt and output of each sequence, as the ranks know them.
    truth: HashMap<Key, Vec<u32>>,
    next_key: Key,
}

/// A residency with a loader that takes some steps, and finds other weights every time.
pub struct Adapters {
    residency: Residency,
    entries: Vec<Arc<Entry>>,
    load_steps: usize,
    loading: Vec<(usize, Arc<Entry>)>,
    loads: u8,
}

impl World {
    pub fn new(limits: Limits, adapters: Adapters) -> Self {
        Self {
            scheduler: Scheduler::new(limits.clone()),
            limits,
            plan: Plan::default(),
            adapters,
            steps: 0,
            cache: HashMap::new(),
            outputs: BTreeMap::new(),
            admitted: BTreeMap::new(),
            scored: BTreeMap::new(),
            rows: Vec::new(),
            runs_ahead: false,
            batches: Batches::default(),
            flights: VecDeque::new(),
            drawn: VecDeque::new(),
            truth: HashMap::new(),
            next_key: 0,
        }
    }

    pub fn submit(&mut self, prompt: &[u32], max_tokens: u32, adapter: Option<usize>) -> Key {
        self.submit_request(request(prompt, max_tokens), adapter)
    }

    pub fn submit_request(&mut self, request: Request, adapter: Option<usize>) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        self.truth.insert(key, request.prompt.to_vec());
        let entry = adapter.map(|at| Arc::clone(&self.adapters.entries[at]));
        self.scheduler.enqueue(Sequence::new(key, request, entry));
        key
    }

    /// Ends a sequence as its owner does: what it holds is free once it is in flight no more.
    pub fn cancel(&mut self, key: Key) {
        self.scheduler.end(|open| open == key);
        self.scheduler.retire(|_| ());
    }

    pub fn is_empty(&self) -> bool {
        let open = self.scheduler.running().len() + self.scheduler.waiting().len();
        open == 0 && self.flights.is_empty()
    }

    /// Plans, computes and settles one step, and lets go of what ended. Where steps run ahead, the
    /// one settled is the one before, or this one if it cannot be followed.
    pub fn step(&mut self) {
        let stuck = |flight: &Flight| !flight.may_be_followed(&self.scheduler);
        if self.flights.back().is_some_and(stuck) {
            self.settle();
        }
        self.plan();
        let ahead = self.runs_ahead && !self.plan.shares.is_empty();
        self.compute();
        while self.flights.len() > usize::from(ahead) {
            self.settle();
        }
    }

    /// Plans one step.
    pub fn plan(&mut self) {
        self.steps += 1;
        self.adapters.turn();
        self.scheduler.schedule(&mut self.adapters, &mut self.plan);
        for admission in &self.plan.admitted {
            self.admitted.entry(admission.key).or_insert(self.steps);
        }
        let shares = self.plan.shares.iter();
        let key = |share: &Share| self.scheduler.running()[share.at].key;
        self.rows = shares.map(|share| (key(share), share.rows)).collect();
        self.check_plan();
        self.check_order();
        self.check_blocks();
    }

    /// Computes what was planned, as ranks do: with the tokens that sequences really have.
    pub fn compute(&mut self) {
        if self.plan.shares.is_empty() {
            return;
        }
        let shares = self.plan.shares.clone();
        let running = self.scheduler.running();
        let batch = self.batches.build(&shares, running, self.limits.block_tokens);
        let before = self.drawn.back().cloned().unwrap_or_default();
        let mut drawn = Vec::new();
        for (share, span) in shares.iter().zip(&batch.spans) {
            self.check_tokens(share, &resolved(&batch, &before)[rows_of(span)]);
            self.write_cache(share);
            let sequence = &self.scheduler.running()[share.at];
            self.scored.entry(share.key).or_default().extend(sequence.scores(share.rows));
            drawn.extend((0..share.scores).map(|_| u32::MAX));
            if share.draws {
                let all = self.truth.get_mut(&share.key).unwrap();
                let next = draw(&seen(sequence, all));
                all.push(next);
                drawn.push(next);
            }
        }
        self.scheduler.begin(&shares);
        self.flights.push_back(Flight::new(&shares, &batch));
        self.drawn.push_back(drawn);
    }

    /// Settles the oldest step in flight, and lets go of what ended.
    pub fn settle(&mut self) {
        let (flight, drawn) = (self.flights.pop_front(), self.drawn.pop_front());
        let (flight, mut drawn) = (flight.unwrap(), drawn.unwrap().into_iter());
        let mut ended = Vec::new();
        for share in &flight.shares {
            drawn.by_ref().take(share.scores).for_each(drop);
            let token = if share.draws { drawn.next() } else { None };
            let sequence = self.scheduler.settle(share, token);
            if sequence.over {
                continue;
            }
            let prompt = sequence.request.prompt.len();
            let output = &sequence.tokens[prompt..];
            let has_all = output.len() == sequence.request.max_tokens as usize;
            let stops = sequence.request.sampling.stop_tokens.contains(&token.unwrap_or(VOCAB));
            if stops || has_all && share.end() >= prompt {
                ended.push(sequence.key);
                self.outputs.insert(sequence.key, output.to_vec());
            }
        }
        self.scheduler.end(|key| ended.contains(&key));
        self.scheduler.retire(|_| ());
        self.check_blocks();
    }

    /// Runs until nothing is open; panics if that takes more than `steps_max` steps.
    pub fn finish(&mut self, steps_max: usize) {
        for _ in 0..steps_max {
            if self.is_empty() {
                assert_eq!(self.scheduler.pool().available(), self.limits.blocks, "blocks leaked");
                return;
            }
            self.step();
        }
        panic!("{} sequences are open after {steps_max} steps", self.scheduler.waiting().len());
    }

    /// The ranks compute what the sequence really consists of, as far as a draw may follow.
    fn check_tokens(&self, share: &Share, tokens: &[u32]) {
        let all = &self.truth[&share.key];
        assert_eq!(tokens, &all[share.first..share.end()], "{}", share.key);
        assert!(!share.draws || share.end() == all.len(), "{} draws twice", share.key);
    }

    /// Every position before the share must hold what this very sequence would have written.
    fn write_cache(&mut self, share: &Share) {
        let sequence = &self.scheduler.running()[share.at];
        for position in 0..share.end() {
            let block = sequence.blocks[position / self.limits.block_tokens];
            let place = (block, position % self.limits.block_tokens);
            let wanted = hash(&seen(sequence, &self.truth[&share.key][..=position]));
            if position < share.first {
                let found = self.cache.get(&place);
                assert_eq!(found, Some(&wanted), "position {position} of {}", sequence.key);
            } else {
                self.cache.insert(place, wanted);
            }
        }
    }

    fn check_plan(&self) {
        let running = self.scheduler.running();
        let shares = &self.plan.shares;
        let leaving = running.iter().filter(|it| it.uncomputed() == 0).count();
        assert!(running.len() - leaving <= self.limits.sequences_max);
        let rows: usize = shares.iter().map(|share| share.rows).sum();
        assert!(rows <= self.limits.batch_tokens_max, "{rows} rows");
        let scores: usize =
            shares.iter().map(|share| running[share.at].scores(share.rows).len()).sum();
        assert!(scores <= self.limits.scores_max, "{scores} prompt logprobs");
        assert!(shares.is_sorted_by_key(|share| running[share.at].slot()));
        let once: HashSet<_> = shares.iter().map(|share| share.at).collect();
        assert_eq!(once.len(), shares.len(), "a sequence has two shares");
        for share in shares {
            let sequence = &running[share.at];
            assert!(share.rows > 0 && share.rows <= sequence.uncomputed());
            assert_eq!(sequence.adapter.is_some(), sequence.lease.is_some(), "no lease");
        }
    }

    /// The queue is sorted by priority, and nobody who could run was passed by one behind them.
    fn check_order(&self) {
        let priority = |it: &Sequence| it.request.priority;
        assert!(self.scheduler.waiting().is_sorted_by_key(priority));
        let ready = |it: &&Sequence| it.adapter.is_none() || it.lease.is_some();
        let Some(first) = self.scheduler.waiting().find(ready) else { return };
        for admission in &self.plan.admitted {
            let running = self.scheduler.running().iter();
            let mut admitted = running.filter(|it| it.key == admission.key);
            assert!(admitted.all(|it| priority(it) <= priority(first)), "{}", first.key);
        }
    }

    /// Held blocks and free ones are all blocks, and nobody writes into a shared one.
    fn check_blocks(&self) {
        let mut holders: HashMap<BlockId, usize> = HashMap::new();
        for sequence in self.scheduler.running() {
            let own: HashSet<_> = sequence.blocks.iter().collect();
            assert_eq!(own.len(), sequence.blocks.len(), "a block twice in one table");
            own.into_iter().for_each(|block| *holders.entry(*block).or_default() += 1);
        }
        assert!(self.scheduler.waiting().all(|waiting| waiting.blocks.is_empty()));
        assert_eq!(self.scheduler.pool().available() + holders.len(), self.limits.blocks);
        for sequence in self.scheduler.running() {
            let written = sequence.computed / self.limits.block_tokens;
            assert!(sequence.blocks.iter().skip(written).all(|block| holders[block] == 1));
        }
    }
}

impl Adapters {
    pub fn new(count: usize, slots_max: usize, load_steps: usize) -> Self {
        Self::with_host_memory(count, slots_max, load_steps, count)
    }

    /// Host memory for `host_max` generations.
    pub fn with_host_memory(
        count: usize,
        slots_max: usize,
        load_steps: usize,
        host_max: usize,
    ) -> Self {
        let limits = residency::Limits { slots_max, host_bytes_max: host_max };
        Self {
            residency: Residency::new(limits),
            entries: (0..count).map(|at| Arc::new(entry(at))).collect(),
            load_steps,
            loading: Vec::new(),
            loads: 0,
        }
    }

    fn turn(&mut self) {
        for at in (0..self.loading.len()).rev() {
            self.loading[at].0 = self.loading[at].0.saturating_sub(1);
            if self.loading[at].0 == 0 {
                let (_, entry) = self.loading.remove(at);
                self.loads = self.loads.wrapping_add(1);
                let generation = generation(&entry.name, self.loads);
                self.residency.loaded(&entry, Arc::new(generation));
            }
        }
    }
}

impl Slots for Adapters {
    fn lease(&mut self, entry: &Arc<Entry>) -> Leasing {
        match self.residency.want(entry) {
            Need::Ready(lease) | Need::Activate { lease, .. } => Leasing::Granted(lease),
            Need::Wait(wait) => Leasing::Later(wait),
            Need::Load => {
                self.loading.push((self.load_steps, Arc::clone(entry)));
                Leasing::Later(Wait::Loading)
            }
        }
    }
}

pub fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        id: String::new(),
        adapter: None,
        priority: 0,
        prompt: prompt.into(),
        sampling: Arc::default(),
        seed: 0,
        max_tokens,
        stop: Vec::new(),
        include_stop: false,
        skip_special_tokens: true,
        logprobs: None,
        prompt_logprobs: None,
    }
}

fn entry(at: usize) -> Entry {
    Entry {
        id: at as u64,
        name: format!("adapter-{at}"),
        path: PathBuf::new(),
        kind: Kind::Plain,
        lora_rank: 1,
        bytes: 1,
        pinned: false,
        sha256: None,
    }
}

fn generation(name: &str, load: u8) -> Generation {
    let mut id = [load; 32];
    id[0] = name.as_bytes()[name.len() - 1];
    let (name, kind) = (name.to_owned(), Kind::Plain);
    Generation { id: GenerationId(id), name, kind, lora_rank: 1, ranks: Vec::new() }
}

type Seen<'a> = (Option<GenerationId>, &'a [u32]);

/// All that the keys and values of the last of `tokens` depend on.
fn seen<'a>(sequence: &Sequence, tokens: &'a [u32]) -> Seen<'a> {
    (sequence.lease.as_ref().map(|lease| lease.generation()), tokens)
}

/// A batch's tokens, those included that the step before drew.
fn resolved(batch: &Batch, drawn: &[u32]) -> Vec<u32> {
    let mut tokens = batch.tokens.clone();
    for pending in &batch.pending {
        tokens[pending.row as usize] = drawn[pending.query as usize];
    }
    tokens
}

fn rows_of(span: &Span) -> Range<usize> {
    span.rows.start as usize..span.rows.end as usize
}

fn hash(seen: &Seen<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen.hash(&mut hasher);
    hasher.finish()
}

/// What the ranks draw.
fn draw(seen: &Seen<'_>) -> u32 {
    (hash(seen) % u64::from(VOCAB)) as u32
}

/// What a sequence without an adapter draws when it is alone.
pub fn expected(prompt: &[u32], max_tokens: u32) -> Vec<u32> {
    expected_until(prompt, max_tokens, None)
}

/// The same, up to the first `stop`.
pub fn expected_until(prompt: &[u32], max_tokens: u32, stop: Option<u32>) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        let next = draw(&(None, &tokens));
        tokens.push(next);
        if stop == Some(next) {
            break;
        }
    }
    tokens.split_off(prompt.len())
}
