//! The engine's own cost: what it takes between two steps of ranks that answer at once.
//!
//! `cargo bench -p engine` prints one line for each number of running sequences and way to use
//! them. The time is from the end of one step to the start of the next: settling,
//! detokenising, scheduling and building the batch. The aim is at most 20 us a step and 0.6 us a
//! sequence on top.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use adapters::catalogue::{Catalogue, Sources};
use adapters::cut::{Group, PlainSharding};
use adapters::residency::Limits;
use contract::adapter::{Generation, Slot};
use contract::base::BaseShape;
use contract::request::Request;
use contract::sampling::Sampling;
use contract::step::{Answer, Batch, Choice, Executor, Fault, Query, StepOutput};
use engine::handle::{Engine, Parts, Ticket};
use engine::metrics::Metrics;
use engine::text::Text;

const PROMPT_TOKENS: usize = 100;
const OUTPUT_TOKENS: u32 = 3000;
const VOCAB: usize = 101;
const FIXED_US: f64 = 20.0;
const ADAPTERS: [&str; 4] = ["bd2", "bd4", "plain", "one-layer"];

/// Ranks that do nothing but note how long the engine took between two full steps of decoding.
struct Instantly {
    sequences: usize,
    step: Duration,
    /// The first step waits until all sequences are submitted.
    begin: Receiver<()>,
    done: Option<Instant>,
    started: Option<Arc<Batch>>,
    between: Arc<Mutex<Vec<f64>>>,
}

impl Executor for Instantly {
    fn start(&mut self, batch: Arc<Batch>) {
        if let Some(done) = self.done.filter(|_| self.decodes(&batch)) {
            let elapsed = done.elapsed().as_secs_f64() * 1e6;
            self.between.lock().expect("nobody panics with it").push(elapsed);
        }
        self.started = Some(batch);
    }

    fn finish(&mut self) -> Result<StepOutput, Fault> {
        let batch = self.started.take().expect("a step was started");
        let decodes = self.decodes(&batch);
        // Nobody sends: it returns when the sender is dropped, and at once from then on.
        let _ = self.begin.recv();
        thread::sleep(self.step);
        let answers = batch.queries.iter().map(answer).collect();
        drop(batch);
        self.done = decodes.then(Instant::now);
        Ok(StepOutput { answers, ..StepOutput::default() })
    }

    fn load(&mut self, _: Slot, _: Arc<Generation>) -> Result<(), Fault> {
        Ok(())
    }

    fn unload(&mut self, _: Slot) -> Result<(), Fault> {
        Ok(())
    }
}

impl Instantly {
    fn decodes(&self, batch: &Batch) -> bool {
        batch.tokens.len() == self.sequences && batch.queries.len() == self.sequences
    }
}

fn answer(query: &Query) -> Answer {
    let index = match &query.choice {
        Choice::Draw(draw) => draw.index,
        Choice::Given(token) => *token,
    };
    Answer { token: 5 + index % (VOCAB as u32 - 5), ..Answer::default() }
}

/// How the sequences are used.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Nobody reads, so news merge.
    Unread,
    /// A task for each reads as fast as it can, like a streaming client.
    Streamed,
    /// Likewise, with steps of a millisecond: all readers wait when their token comes.
    Live,
    /// With two stop texts each.
    Stops,
    /// With four adapters.
    Adapters,
}

fn main() {
    println!(
        "{:>9}  {:<8}  {:>10}  {:>10}  {:>22}",
        "sequences", "way", "us a step", "p90", "us a sequence over 20"
    );
    for way in [Way::Unread, Way::Streamed, Way::Live, Way::Stops, Way::Adapters] {
        for sequences in [1, 64, 256] {
            let mut times = measure(sequences, way);
            times.sort_by(f64::total_cmp);
            let [median, p90] = [times.len() / 2, times.len() * 9 / 10].map(|at| times[at]);
            let over = (median - FIXED_US).max(0.0) / sequences as f64;
            let way = format!("{way:?}").to_lowercase();
            println!("{sequences:>9}  {way:<8}  {median:>10.1}  {p90:>10.1}  {over:>22.3}");
        }
    }
}

fn measure(sequences: usize, way: Way) -> Vec<f64> {
    let between = Arc::new(Mutex::new(Vec::new()));
    let (submitted, begin) = channel();
    let step = if way == Way::Live { Duration::from_millis(1) } else { Duration::ZERO };
    let executor = Instantly {
        sequences,
        step,
        begin,
        done: None,
        started: None,
        between: Arc::clone(&between),
    };
    let engine = start(Box::new(executor), sequences);
    let requests = (0..sequences).map(|at| request(at, way, &engine));
    let tickets: Vec<Ticket> =
        requests.map(|request| engine.submit(request).expect("it is accepted")).collect();
    drop(submitted);
    let workers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
    let runtime = workers.expect("a runtime");
    if matches!(way, Way::Streamed | Way::Live) {
        let readers = tickets.into_iter().map(|ticket| runtime.spawn(read(ticket)));
        let readers: Vec<_> = readers.collect();
        runtime.block_on(async {
            for reader in readers {
                assert_eq!(reader.await.expect("a reader ends"), OUTPUT_TOKENS as usize);
            }
        });
    } else {
        runtime.block_on(engine.idle());
    }
    drop(engine);
    let times = between.lock().expect("nobody panics with it");
    times.clone()
}

/// Counts the tokens that come.
async fn read(mut ticket: Ticket) -> usize {
    let mut tokens = 0;
    while let Some(news) = ticket.next().await {
        tokens += news.tokens.len();
    }
    tokens
}

fn start(executor: Box<dyn Executor>, sequences: usize) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/goldens/llama");
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
    let dir = folder.join("adapters");
    let sources = Sources { dir: Some(&dir), named: &[] };
    let limits = Limits { slots_max: ADAPTERS.len(), host_bytes_max: 1 << 30 };
    let started = Engine::start(Parts {
        executor,
        blocks: 65_536,
        vocab: VOCAB,
        context_max: 4096,
        text: Arc::new(Text::open(&folder.join("base")).expect("the fixture's text")),
        catalogue: Arc::new(Catalogue::open(sources, group, limits).expect("its adapters")),
        settings: config::settings::Engine {
            kv_cache_bytes: None,
            block_tokens: 16,
            batch_tokens_max: 8192,
            sequences_max: sequences,
            queue_max: 1024,
            prefix_cache: true,
        },
        slots_max: limits.slots_max,
        host_bytes: 1 << 30,
        metrics: Arc::new(Metrics::new("bench", 0, 4096)),
    });
    started.expect("an engine")
}

fn request(at: usize, way: Way, engine: &Engine) -> Request {
    let prompt = (0..PROMPT_TOKENS).map(|token| 5 + ((token * 7 + at) % (VOCAB - 5)) as u32);
    let stops = ["\nuser:".to_owned(), "###".to_owned()];
    Request {
        id: at.to_string(),
        adapter: (way == Way::Adapters).then(|| ADAPTERS[at % ADAPTERS.len()].to_owned()),
        priority: 0,
        prompt: prompt.collect(),
        sampling: Arc::new(Sampling {
            stop_tokens: engine.text().end_tokens().to_vec(),
            ..Sampling::default()
        }),
        seed: 0,
        max_tokens: OUTPUT_TOKENS,
        stop: if way == Way::Stops { stops.to_vec() } else { Vec::new() },
        include_stop: false,
        skip_special_tokens: true,
        logprobs: None,
        prompt_logprobs: None,
    }
}
