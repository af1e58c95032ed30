//! What operators can watch: vLLM's metric names where one exists, `drystone_` otherwise.

mod adapters;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use contract::request::Finish;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use crate::metrics::adapters::{AdapterMetrics, Level};

/// A label and its value.
type Label = [(&'static str, &'static str); 1];

/// A gauge of fractions.
type Fraction = Gauge<f64, AtomicU64>;

/// Everything that the engine counts. Times are in seconds.
pub struct Metrics {
    labels: Vec<(String, String)>,
    /// Sequences that run.
    pub running: Gauge,
    /// Sequences that wait.
    pub waiting: Gauge,
    /// Part of the KV blocks that sequences hold, 0 to 1.
    pub kv_cache_usage: Fraction,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: Counter,
    /// Prompt tokens found there.
    pub prefix_hits: Counter,
    /// Sequences that gave their blocks back and start again.
    pub preemptions: Counter,
    /// Prompt tokens of admitted requests.
    pub prompt_tokens: Counter,
    /// Tokens drawn.
    pub generation_tokens: Counter,
    /// Ended requests by reason.
    pub finished: Family<Label, Counter>,
    /// Requests refused by reason before they got a ticket.
    pub rejected: Family<Label, Counter>,
    /// From submission to the first token.
    pub first_token_seconds: Histogram,
    /// Between two tokens of a sequence.
    pub inter_token_seconds: Histogram,
    /// From submission to the end.
    pub request_seconds: Histogram,
    /// From submission to the first step.
    pub queue_seconds: Histogram,
    /// Prompt lengths.
    pub request_prompt_tokens: Histogram,
    /// Output lengths.
    pub request_generation_tokens: Histogram,
    /// Rows in a step.
    pub iteration_tokens: Histogram,
    /// Time that the ranks take for a step.
    pub step_seconds: Histogram,
    /// 1 once the ranks are lost.
    pub dead: Gauge,
    /// Adapters.
    pub adapters: Arc<AdapterMetrics>,
}

impl Metrics {
    /// Zeroes, to be told apart by the base's name and the number of the engine; `context_max`
    /// bounds the token buckets.
    pub fn new(model_name: &str, engine: usize, context_max: usize) -> Self {
        let tokens = || Histogram::new(one_two_five(context_max));
        Self {
            labels: vec![
                ("model_name".to_owned(), model_name.to_owned()),
                ("engine".to_owned(), engine.to_string()),
            ],
            running: Gauge::default(),
            waiting: Gauge::default(),
            kv_cache_usage: Gauge::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            preemptions: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            rejected: Family::default(),
            first_token_seconds: Histogram::new(FIRST_TOKEN_BUCKETS),
            inter_token_seconds: Histogram::new(INTER_TOKEN_BUCKETS),
            request_seconds: Histogram::new(REQUEST_BUCKETS),
            queue_seconds: Histogram::new(REQUEST_BUCKETS),
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            iteration_tokens: Histogram::new(ITERATION_BUCKETS),
            step_seconds: Histogram::new(STEP_BUCKETS),
            dead: Gauge::default(),
            adapters: Arc::default(),
        }
    }

    /// Adds everything to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let labels =
            self.labels.iter().map(|(name, value)| (name.clone().into(), value.clone().into()));
        let registry = registry.sub_registry_with_labels(labels);
        self.register_gauges(registry);
        self.register_counters(registry);
        self.register_histograms(registry);
        self.adapters.register(registry);
    }

    fn register_gauges(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(name, help, gauge.clone());
        };
        gauge("vllm:num_requests_running", "Sequences that run", &self.running);
        gauge("vllm:num_requests_waiting", "Sequences that wait", &self.waiting);
        gauge("drystone_engine_dead", "1 once the ranks are lost", &self.dead);
        let help = "Part of the KV blocks in use, 1 is all";
        registry.register("vllm:kv_cache_usage_perc", help, self.kv_cache_usage.clone());
    }

    fn register_counters(&self, registry: &mut Registry) {
        let counters = [
            ("prefix_cache_queries", "Prompt tokens looked up in the cache", &self.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the cache", &self.prefix_hits),
            ("num_preemptions", "Sequences that had to start again", &self.preemptions),
            ("prompt_tokens", "Prompt tokens of admitted requests", &self.prompt_tokens),
            ("generation_tokens", "Tokens drawn", &self.generation_tokens),
        ];
        for (name, help, counter) in counters {
            registry.register(format!("vllm:{name}"), help, counter.clone());
        }
        let help = "Ended requests by reason";
        registry.register("vllm:request_success", help, self.finished.clone());
        let help = "Requests refused by reason";
        registry.register("vllm:admission_rejections", help, self.rejected.clone());
    }

    fn register_histograms(&self, registry: &mut Registry) {
        let histograms = [
            ("time_to_first_token_seconds", "Submission to first token", &self.first_token_seconds),
            ("inter_token_latency_seconds", "Between two tokens", &self.inter_token_seconds),
            ("e2e_request_latency_seconds", "Submission to end", &self.request_seconds),
            ("request_queue_time_seconds", "Submission to first step", &self.queue_seconds),
            ("request_prompt_tokens", "Prompt lengths", &self.request_prompt_tokens),
            ("request_generation_tokens", "Output lengths", &self.request_generation_tokens),
            ("iteration_tokens_total", "Rows in a step", &self.iteration_tokens),
        ];
        for (name, help, histogram) in histograms {
            registry.register(format!("vllm:{name}"), help, histogram.clone());
        }
        let help = "Time that the ranks take for a step";
        registry.register("drystone_step_seconds", help, self.step_seconds.clone());
    }
}

/// The label of a finish, in vLLM's words.
pub fn finish_label(finish: &Finish) -> Label {
    let reason = match finish {
        Finish::StopText(_) | Finish::StopToken(_) => "stop",
        Finish::Length => "length",
        Finish::Failed(_) => "error",
    };
    [("finished_reason", reason)]
}

const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN_BUCKETS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const REQUEST_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const ITERATION_BUCKETS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const STEP_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 2.56];

/// 1, 2, 5, 10, 20, .. up to `max`.
fn one_two_five(max: usize) -> impl Iterator<Item = f64> {
    let powers = (0..10).map(|exponent| 10f64.powi(exponent));
    let values = powers.flat_map(|power| [power, 2.0 * power, 5.0 * power]);
    values.take_while(move |value| *value <= max as f64)
}
