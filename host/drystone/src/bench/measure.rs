//! Starts ranks on random weights and times their steps.

use std::path::PathBuf;
use std::sync::Arc;

use config::settings::{self, Backend, CommKind, Load};
use contract::adapter::Slot;
use contract::base::Projection;
use contract::step::{Batch, Executor};
use contract::tensor::DType;
use model::blueprint::Progress;
use model::hf::ModelConfig;
use ranks::group::{Group, GroupSpec};

use crate::Failure;
use crate::bench::batches::Sequences;
use crate::bench::generations::{KINDS, Name, Random};
use crate::bench::shapes;
use crate::bench::table::Row;
use crate::cli::Offline;

/// Context of a sequence before its first decode step.
const CONTEXT: usize = 128;
const BLOCK_TOKENS: usize = 16;
/// Prefill steps of a run.
const PREFILLS: usize = 5;

/// Ranks that are ready to be timed.
pub struct Bench<'a> {
    options: &'a Offline,
    config: ModelConfig,
    dtype: DType,
    group: Group,
    threads: usize,
}

impl<'a> Bench<'a> {
    /// Loads random weights.
    pub fn start(options: &'a Offline) -> Result<Self, Failure> {
        let config = shapes::config(options.shape)?;
        let dtype = DType::parse(&options.dtype).ok_or_else(|| {
            Failure::Usage(format!("--dtype {}: bf16, f16 or f32 would do", options.dtype))
        })?;
        let sequences = options.batch.iter().copied().max().unwrap_or(1);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or_else(|| (cores / options.tensor).max(1));
        let spec = GroupSpec {
            config: &config,
            model: &model(dtype),
            parallel: &parallel(options.tensor, threads),
            engine: &engine(&config, sequences, options),
            slots_max: sequences,
            progress: &Arc::new(Progress::default()),
        };
        let group = Group::start(&spec)?;
        Ok(Self { options, config, dtype, group, threads })
    }

    /// What is measured, in a line.
    pub fn title(&self) -> String {
        format!(
            "{:?} {}, {} ranks x {} threads, {}, adapters of lora rank {}",
            self.options.shape,
            self.dtype,
            self.options.tensor,
            self.threads,
            kernels::cpu::Isa::best(),
            self.options.lora_rank,
        )
    }

    /// One prompt in one step: the base, then adapters of both kinds.
    pub fn prefill(&mut self) -> Result<Vec<Row>, Failure> {
        let (rows, block_tokens) = (self.options.prompt, BLOCK_TOKENS);
        let blocks = rows.div_ceil(BLOCK_TOKENS);
        let batch =
            |adapters| Sequences { count: 1, block_tokens, blocks, adapters }.batch(0..rows);
        let (base, mixed) = (batch(false), batch(true));
        self.runs("prefill", rows, |_| (Arc::clone(&base), Arc::clone(&mixed)), PREFILLS)
    }

    /// One token of each of `count` sequences a step: the base, then adapters of both kinds.
    pub fn decode(&mut self, count: usize) -> Result<Vec<Row>, Failure> {
        let steps = self.options.steps;
        let blocks = (CONTEXT + steps + 1).div_ceil(BLOCK_TOKENS);
        let batch = |adapters, positions| {
            let block_tokens = BLOCK_TOKENS;
            Sequences { count, block_tokens, blocks, adapters }.batch(positions)
        };
        self.group.run(batch(false, 0..CONTEXT))?;
        let at = |step| CONTEXT + step..CONTEXT + step + 1;
        self.runs("decode", count, |step| (batch(false, at(step)), batch(true, at(step))), steps)
    }

    /// Steps of the base and of each kind of adapters in turn, so that all see the same weather.
    fn runs(
        &mut self,
        phase: &'static str,
        batch: usize,
        batches: impl Fn(usize) -> (Arc<Batch>, Arc<Batch>),
        steps: usize,
    ) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        for kind in KINDS {
            self.load(kind)?;
            let (mut base, mut mixed, mut bandwidth) = (Vec::new(), Vec::new(), Vec::new());
            for step in 0..=steps {
                let (plain, adapted) = batches(step);
                let times = [self.step(plain)?, self.step(adapted)?];
                if step > 0 {
                    base.push(times[0]);
                    mixed.push(times[1]);
                }
                if step % 8 == 0 {
                    bandwidth.push(self.bandwidth()?);
                }
            }
            let (base, mixed, bandwidth) = (median(base), median(mixed), median(bandwidth));
            let row = |adapters: Option<Name>, step_ms: f64| Row {
                phase,
                batch,
                adapters,
                step_ms,
                tokens_per_s: batch as f64 / step_ms * 1e3,
                floor_ms: self.weight_bytes() / bandwidth / 1e6,
                bandwidth_gb_s: bandwidth,
                to_base: step_ms / base,
            };
            if kind == KINDS[0] {
                rows.push(row(None, base));
            }
            rows.push(row(Some(kind), mixed));
        }
        Ok(rows)
    }

    /// Of all cores that the ranks use, in GB/s.
    fn bandwidth(&self) -> Result<f64, Failure> {
        Ok(kernels::cpu::bandwidth(self.threads * self.options.tensor)?)
    }

    fn load(&mut self, kind: Name) -> Result<(), Failure> {
        let sequences = self.options.batch.iter().copied().max().unwrap_or(1);
        let random = Random {
            base: &self.config.shape,
            ranks: self.options.tensor,
            kind,
            lora_rank: self.options.lora_rank,
        };
        for slot in 0..sequences as u32 {
            self.group.load(Slot(slot), Arc::new(random.generation(slot)))?;
        }
        Ok(())
    }

    fn step(&mut self, batch: Arc<Batch>) -> Result<f64, Failure> {
        Ok(self.group.run(batch)?.elapsed.as_secs_f64() * 1e3)
    }

    /// Bytes that every step must read: the linear layers and the LM head.
    fn weight_bytes(&self) -> f64 {
        let shape = &self.config.shape;
        let layer: usize = Projection::ALL
            .map(|projection| shape.features(projection))
            .map(|(input, output)| input * output)
            .iter()
            .sum();
        ((shape.layers * layer + shape.vocab * shape.hidden) * self.dtype.bytes()) as f64
    }
}

fn model(dtype: DType) -> settings::Model {
    settings::Model {
        path: PathBuf::new(),
        name: "dummy".to_owned(),
        dtype: Some(dtype),
        load: Load::Dummy { seed: 0 },
        context_max: None,
    }
}

fn parallel(tensor: usize, threads: usize) -> settings::Parallel {
    settings::Parallel {
        backend: Backend::Cpu,
        tensor,
        replicas: 1,
        threads: Some(threads),
        comm: CommKind::Auto,
        devices: Vec::new(),
    }
}

/// Bounds with room for the largest run.
fn engine(config: &ModelConfig, sequences: usize, options: &Offline) -> settings::Engine {
    let positions = (CONTEXT + options.steps).max(options.prompt) + BLOCK_TOKENS;
    let position_bytes =
        config.shape.layers * config.shape.kv_heads * config.shape.head_dim * 2 * 4;
    settings::Engine {
        kv_cache_bytes: (sequences * positions * position_bytes * options.tensor) as u64,
        block_tokens: BLOCK_TOKENS,
        batch_tokens_max: options.prompt.max(sequences * CONTEXT),
        sequences_max: sequences,
        queue_max: sequences,
        prefix_cache: false,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
