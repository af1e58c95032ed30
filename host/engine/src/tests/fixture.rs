//! An engine over ranks that answer from a script, with the goldens' tokenizer and adapters.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use adapters::catalogue::{Catalogue, Named, Sources};
use adapters::cut::{Group, PlainSharding};
use adapters::residency::Limits;
use contract::adapter::{Generation, GenerationId, Slot};
use contract::base::BaseShape;
use contract::request::{Finish, Progress, Request, Scored};
use contract::sampling::Sampling;
use contract::step::{Answer, Batch, Choice, Executor, Fault, Query, StepOutput};

use crate::handle::{Engine, Parts, SubmitError, Ticket};
use crate::metrics::Metrics;
use crate::text::Text;

pub const BLOCK_TOKENS: usize = 4;
pub const VOCAB: usize = 101;

/// Ranks whose "keys and values" are hashes of all that came before, so that an answer depends on
/// the whole sequence, its adapter and nothing else; a wrong block or slot changes the text.
pub struct Scripted {
    cache: HashMap<(u32, u32), u64>,
    slots: HashMap<Slot, GenerationId>,
    script: Script,
    /// Steps in flight; they are computed when they are waited for.
    started: VecDeque<Arc<Batch>>,
    /// Tokens that the last step drew.
    drawn: Vec<u32>,
}

/// What the ranks do beside computing.
#[derive(Default)]
pub struct Script {
    /// Draw these tokens in place of hashes, by index in the sequence.
    pub says: Vec<u32>,
    /// Each step waits for one message, but not for ever; none waits when the sender is gone.
    pub turnstile: Option<Receiver<()>>,
    /// Fails this step, counted from 0.
    pub fault: Option<(usize, Fault)>,
    /// Panics in this step.
    pub panics: Option<usize>,
    /// Refuses loads of this adapter.
    pub refuses: Option<&'static str>,
    /// Steps so far, rows of each.
    pub rows: Arc<Mutex<Vec<usize>>>,
    /// Whether steps are started ahead.
    pub runs_ahead: bool,
    /// What was started and finished, in order, by the number of the step.
    pub order: Arc<Mutex<Vec<Event>>>,
}

/// What the engine has the ranks do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// With this many rows that wait for a token.
    Start {
        step: usize,
        pending: usize,
    },
    Finish {
        step: usize,
    },
}

impl Executor for Scripted {
    fn runs_ahead(&self) -> bool {
        self.script.runs_ahead
    }

    fn start(&mut self, batch: Arc<Batch>) {
        let in_flight = self.started.len();
        assert!(in_flight <= usize::from(self.script.runs_ahead), "{in_flight} in flight already");
        let all = |batch: &Arc<Batch>| batch.queries.iter().all(Query::is_followed);
        assert!(self.started.iter().all(all), "it is not to be followed");
        let step = self.script.rows.lock().unwrap().len() + in_flight;
        self.note(Event::Start { step, pending: batch.pending.len() });
        self.started.push_back(batch);
    }

    fn finish(&mut self) -> Result<StepOutput, Fault> {
        let batch = self.started.pop_front().expect("a step is in flight");
        if let Some(turnstile) = &self.script.turnstile {
            let _ = turnstile.recv_timeout(Duration::from_secs(10));
        }
        let mut rows = self.script.rows.lock().unwrap();
        let step = rows.len();
        rows.push(batch.tokens.len());
        drop(rows);
        self.note(Event::Finish { step });
        assert_ne!(self.script.panics, Some(step), "a scripted panic");
        if let Some((_, fault)) = self.script.fault.take_if(|(at, _)| *at == step) {
            self.drawn.clear();
            return Err(fault);
        }
        let batch = self.resolve(&batch);
        let hashes = self.compute(&batch);
        let answer = |query: &Query| self.answer(query, hashes[query.row as usize], &batch);
        let answers: Vec<Answer> = batch.queries.iter().map(answer).collect();
        self.drawn = answers.iter().map(|answer| answer.token).collect();
        Ok(StepOutput { answers, ..StepOutput::default() })
    }

    fn load(&mut self, slot: Slot, generation: Arc<Generation>) -> Result<(), Fault> {
        if self.script.refuses == Some(generation.name.as_str()) {
            return Err(Fault::Refused("no room on the device".into()));
        }
        self.slots.insert(slot, generation.id);
        Ok(())
    }

    fn unload(&mut self, slot: Slot) -> Result<(), Fault> {
        self.slots.remove(&slot);
        Ok(())
    }
}

impl Scripted {
    fn new(script: Script) -> Self {
        let (cache, slots) = (HashMap::new(), HashMap::new());
        Self { cache, slots, script, started: VecDeque::new(), drawn: Vec::new() }
    }

    fn note(&self, event: Event) {
        self.script.order.lock().unwrap().push(event);
    }

    /// The batch with the tokens that the step before drew; a step that failed drew none.
    fn resolve(&self, batch: &Batch) -> Batch {
        let mut batch = batch.clone();
        for pending in mem::take(&mut batch.pending) {
            let token = self.drawn.get(pending.query as usize);
            batch.tokens[pending.row as usize] = token.copied().unwrap_or(u32::MAX);
        }
        batch
    }

    /// Writes the cache and answers with the hash of each row.
    fn compute(&mut self, batch: &Batch) -> Vec<u64> {
        let mut hashes = vec![0; batch.tokens.len()];
        for span in &batch.spans {
            let segment = batch.segments.iter().find(|it| it.rows.contains(&span.rows.start));
            let slot = segment.expect("segments cover all rows").slot;
            let generation = slot.map(|slot| self.slots[&slot]);
            let table = &batch.blocks[span.blocks.start as usize..span.blocks.end as usize];
            let place = |position: u32| {
                let block = table[position as usize / BLOCK_TOKENS];
                (block.0, position % BLOCK_TOKENS as u32)
            };
            for row in span.rows.clone() {
                let position = batch.positions[row as usize];
                // A step that failed wrote nothing.
                let before = |at| self.cache.get(&place(at)).copied().unwrap_or_default();
                let before = (position > 0).then(|| before(position - 1));
                let hash = hash(&(before, batch.tokens[row as usize], generation));
                self.cache.insert(place(position), hash);
                hashes[row as usize] = hash;
            }
        }
        hashes
    }

    fn answer(&self, query: &Query, seen: u64, batch: &Batch) -> Answer {
        let token = match &query.choice {
            Choice::Given(token) => *token,
            Choice::Draw(draw) if !self.script.says.is_empty() => {
                self.script.says[draw.index as usize % self.script.says.len()]
            }
            Choice::Draw(draw) => {
                let history = &batch.history[draw.prompt.start as usize..draw.output.end as usize];
                let all = hash(&(seen, draw.seed, draw.index, history));
                // Above the special tokens, so that text and stops say something.
                5 + (all % (VOCAB as u64 - 5)) as u32
            }
        };
        if query.top_logprobs.is_none() {
            return Answer { token, ..Answer::default() };
        }
        let logprob = -((seen % 100) as f32) / 10.0;
        Answer { token, logprob, place: 1, top: vec![(token, logprob)] }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What an engine is built with.
pub struct Setup {
    pub blocks: usize,
    pub slots_max: usize,
    pub queue_max: usize,
    pub sequences_max: usize,
    pub batch_tokens_max: usize,
    /// Where adapters are found.
    pub adapters: PathBuf,
    /// This one of them is pinned.
    pub pinned: Option<&'static str>,
    pub script: Script,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            blocks: 256,
            slots_max: 2,
            queue_max: 64,
            sequences_max: 16,
            batch_tokens_max: 64,
            adapters: goldens().join("adapters"),
            pinned: None,
            script: Script::default(),
        }
    }
}

impl Setup {
    pub fn saying(text: &str) -> Self {
        let says = text_side().encode(text, false).unwrap();
        Self { script: Script { says, ..Script::default() }, ..Self::default() }
    }

    /// Steps wait until the sender says so or goes away.
    pub fn with_turnstile(mut self) -> (Self, Sender<()>) {
        let (sender, turnstile) = channel();
        self.script.turnstile = Some(turnstile);
        (self, sender)
    }

    pub fn start(self) -> Engine {
        self.start_with_metrics().0
    }

    pub fn start_with_metrics(self) -> (Engine, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new("tiny", 0, 512));
        let catalogue = self.catalogue();
        let executor = Scripted::new(self.script);
        let engine = Engine::start(Parts {
            executor: Box::new(executor),
            blocks: self.blocks,
            vocab: VOCAB,
            context_max: 512,
            text: text_side(),
            catalogue,
            settings: config::settings::Engine {
                kv_cache_bytes: None,
                block_tokens: BLOCK_TOKENS,
                batch_tokens_max: self.batch_tokens_max,
                sequences_max: self.sequences_max,
                queue_max: self.queue_max,
                prefix_cache: true,
            },
            slots_max: self.slots_max,
            host_bytes: 1 << 30,
            metrics: Arc::clone(&metrics),
        });
        (engine.unwrap(), metrics)
    }

    fn catalogue(&self) -> Arc<Catalogue> {
        let base = BaseShape {
            hidden: 64,
            intermediate: 96,
            layers: 2,
            heads: 8,
            kv_heads: 4,
            head_dim: 8,
            vocab: VOCAB,
        };
        let group = Group { base, ranks: 1, plain_sharding: PlainSharding::Replicated };
        let pinned = self.pinned.map(|name| Named {
            name: name.into(),
            path: self.adapters.join(name),
            pinned: true,
        });
        let sources = Sources { dir: Some(&self.adapters), named: pinned.as_slice() };
        let limits = Limits { slots_max: self.slots_max, host_bytes_max: 1 << 30 };
        Arc::new(Catalogue::open(sources, group, limits).unwrap())
    }
}

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/goldens/llama")
}

pub fn text_side() -> Arc<Text> {
    Arc::new(Text::open(&goldens().join("base")).unwrap())
}

/// A greedy request for `max_tokens` tokens after this text.
pub fn request(prompt: &str, max_tokens: u32) -> Request {
    Request {
        id: "test".into(),
        adapter: None,
        priority: 0,
        prompt: text_side().encode(prompt, false).unwrap().into(),
        sampling: Arc::new(Sampling { temperature: 0.0, ..Sampling::default() }),
        seed: 7,
        max_tokens,
        stop: Vec::new(),
        include_stop: false,
        skip_special_tokens: true,
        logprobs: None,
        prompt_logprobs: None,
    }
}

/// All that a ticket told.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub text: String,
    pub tokens: Vec<Scored>,
    pub prompt: Option<Vec<Scored>>,
    pub cached_tokens: u32,
    pub finish: Finish,
}

pub async fn read(mut ticket: Ticket) -> Told {
    let mut all = Progress::default();
    while let Some(news) = ticket.next().await {
        assert!(all.finish.is_none(), "news after the finish");
        all.text += &news.text;
        all.tokens.extend(news.tokens);
        all.prompt = all.prompt.or(news.prompt);
        all.cached_tokens = news.cached_tokens;
        all.finish = news.finish;
    }
    Told {
        text: all.text,
        tokens: all.tokens,
        prompt: all.prompt,
        cached_tokens: all.cached_tokens,
        finish: all.finish.expect("every ticket ends with a finish"),
    }
}

pub async fn run(engine: &Engine, request: Request) -> Told {
    read(engine.submit(request).unwrap()).await
}

pub fn refusal(engine: &Engine, request: Request) -> SubmitError {
    engine.submit(request).err().expect("the request should be refused")
}

/// Waits until `done`; the engine's thread gets there by itself.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} did not come about within 5 s");
}
