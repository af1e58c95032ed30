//! An engine over ranks that answer from a script, with the goldens' tokenizer and adapters.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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
}

impl Executor for Scripted {
    fn run(&mut self, batch: Arc<Batch>) -> Result<StepOutput, Fault> {
        if let Some(turnstile) = &self.script.turnstile {
            let _ = turnstile.recv_timeout(Duration::from_secs(10));
        }
        let mut rows = self.script.rows.lock().unwrap();
        let step = rows.len();
        rows.push(batch.tokens.len());
        drop(rows);
        assert_ne!(self.script.panics, Some(step), "a scripted panic");
        if let Some((_, fault)) = self.script.fault.take_if(|(at, _)| *at == step) {
            return Err(fault);
        }
        let hashes = self.compute(&batch);
        let answer = |query: &Query| self.answer(query, hashes[query.row as usize], &batch);
        let answers = batch.queries.iter().map(answer).collect();
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
                let before = (position > 0).then(|| self.cache[&place(position - 1)]);
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
        let executor =
            Scripted { cache: HashMap::new(), slots: HashMap::new(), script: self.script };
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
