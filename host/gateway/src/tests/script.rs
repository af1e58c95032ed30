//! An engine whose ranks answer at once: every sequence says the same sentence.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use adapters::catalogue::{Catalogue, Named, Sources};
use adapters::cut::{Group, PlainSharding};
use adapters::residency::Limits;
use contract::adapter::{Generation, Slot};
use contract::base::BaseShape;
use contract::step::{Answer, Batch, Choice, Draw, Executor, Fault, Query, StepOutput};
use engine::handle::{Engine, Parts};
use engine::metrics::Metrics;
use engine::text::Text;

/// What the base says from the start, drawn greedily; an adapter says it in capitals.
pub const SENTENCE: &str = "The quick brown fox jumps over the lazy dog.";
/// The seed of a sequence that kills the ranks at its fourth token.
pub const FATAL_SEED: u64 = 666;
/// The model's end of sequence, which follows the sentence.
pub const END: u32 = 2;

const BASE: BaseShape = BaseShape {
    hidden: 64,
    intermediate: 96,
    layers: 2,
    heads: 8,
    kv_heads: 4,
    head_dim: 8,
    vocab: 101,
};
const CONTEXT_MAX: usize = 512;

/// The golden tokenizer has one token for each printable ASCII character, in order.
pub fn token(character: char) -> u32 {
    character as u32 - 26
}

/// Bounds of a scripted engine.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time that a step takes.
    pub step: Duration,
    /// Running sequences at most.
    pub sequences_max: usize,
    /// Waiting sequences at most.
    pub queue_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { step: Duration::ZERO, sequences_max: 64, queue_max: 256 }
    }
}

/// An engine with the golden Llama's tokenizer and adapters `sql` and `shout`. Folders of bad
/// adapters are found and refused.
pub fn engine(bounds: Bounds, metrics: Arc<Metrics>, catalogue: Arc<Catalogue>) -> Engine {
    let text = Arc::new(Text::open(&goldens().join("llama/base")).unwrap());
    let settings = config::settings::Engine {
        kv_cache_bytes: None,
        block_tokens: 16,
        batch_tokens_max: 2048,
        sequences_max: bounds.sequences_max,
        queue_max: bounds.queue_max,
        prefix_cache: true,
    };
    let parts = Parts {
        executor: Box::new(Script { step: bounds.step, started: None, shouting: BTreeSet::new() }),
        blocks: bounds.sequences_max * CONTEXT_MAX / settings.block_tokens,
        vocab: BASE.vocab,
        context_max: CONTEXT_MAX,
        text,
        catalogue,
        settings,
        slots_max: 4,
        host_bytes: 1 << 24,
        metrics,
    };
    Engine::start(parts).unwrap()
}

/// The adapters of all engines of a server.
pub fn catalogue() -> Catalogue {
    let named = [("sql", "bd2"), ("shout", "plain")].map(|(name, folder)| Named {
        name: name.to_owned(),
        path: goldens().join("llama/adapters").join(folder),
        pinned: false,
    });
    let bad = goldens().join("bad-adapters");
    let sources = Sources { dir: Some(&bad), named: &named };
    let group = Group { base: BASE, ranks: 1, plain_sharding: PlainSharding::Replicated };
    let limits = Limits { slots_max: 4, host_bytes_max: 1 << 24 };
    Catalogue::open(sources, group, limits).unwrap()
}

/// Models and adapters with known answers.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/goldens")
}

struct Script {
    step: Duration,
    started: Option<Arc<Batch>>,
    shouting: BTreeSet<Slot>,
}

impl Executor for Script {
    fn start(&mut self, batch: Arc<Batch>) {
        self.started = Some(batch);
    }

    fn finish(&mut self) -> Result<StepOutput, Fault> {
        let batch = self.started.take().expect("a step was started");
        sleep(self.step);
        let answers = batch.queries.iter().map(|query| self.answer(&batch, query));
        let answers = answers.collect::<Result<_, _>>()?;
        Ok(StepOutput { answers, elapsed: self.step, ..StepOutput::default() })
    }

    fn load(&mut self, slot: Slot, _: Arc<Generation>) -> Result<(), Fault> {
        self.shouting.insert(slot);
        Ok(())
    }

    fn unload(&mut self, slot: Slot) -> Result<(), Fault> {
        self.shouting.remove(&slot);
        Ok(())
    }
}

impl Script {
    /// A drawn token has the logprob -0.25 and is the likeliest; a given one -0.5 and the second.
    fn answer(&self, batch: &Batch, query: &Query) -> Result<Answer, Fault> {
        let (token, logprob, place) = match &query.choice {
            Choice::Given(token) => (*token, -0.5, 2),
            Choice::Draw(draw) => (self.draw(batch, query.row, draw)?, -0.25, 1),
        };
        let count = query.top_logprobs.unwrap_or(0);
        let top = (0..count).map(|at| ((token + at) % BASE.vocab as u32, -0.25 - at as f32));
        Ok(Answer { token, logprob, place, top: top.collect() })
    }

    fn draw(&self, batch: &Batch, row: u32, draw: &Draw) -> Result<u32, Fault> {
        if (draw.seed, draw.index) == (FATAL_SEED, 3) {
            return Err(Fault::Dead { rank: 0, message: "it was in the script".to_owned() });
        }
        let start = if draw.sampling.temperature == 0.0 { 0 } else { draw.seed as usize };
        let index = draw.index as usize;
        if index == SENTENCE.len() {
            return Ok(END);
        }
        let segment = batch.segments.iter().find(|segment| segment.rows.contains(&row)).unwrap();
        let shouts = segment.slot.is_some_and(|slot| self.shouting.contains(&slot));
        let said = SENTENCE.as_bytes()[(start + index) % SENTENCE.len()] as char;
        Ok(token(if shouts { said.to_ascii_uppercase() } else { said }))
    }
}
