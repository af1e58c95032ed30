//! Starts ranks on random weights and times their steps.

use std::sync::Arc;

use contract::adapter::Slot;
use contract::base::Projection;
use contract::step::{Batch, Executor};
use contract::tensor::DType;
use model::blueprint::Progress;
use model::hf::ModelConfig;
use ranks::group::{Group, GroupSpec};

use crate::Failure;
use crate::bench::batches::Sequences;
use crate::bench::deployment::{
    BLOCK_TOKENS, CONTEXT, Place, engine, largest_batch, model, parallel,
};
use crate::bench::generations::{Name, Random};
use crate::bench::shapes;
use crate::bench::table::Row;
use crate::cli::{Lora, Offline};

/// Prefill steps of a run.
const PREFILLS: usize = 5;

/// Ranks that are ready to be timed.
pub struct Bench<'a> {
    options: &'a Offline,
    config: ModelConfig,
    dtype: DType,
    group: Group,
    place: Place,
    ranks: usize,
    /// Different adapters at most.
    adapters: usize,
    /// The kind that lies in the slots.
    loaded: Option<Name>,
}

impl<'a> Bench<'a> {
    /// Loads random weights.
    pub fn start(options: &'a Offline) -> Result<Self, Failure> {
        let config = shapes::config(options.shape)?;
        let dtype = DType::parse(&options.dtype).ok_or_else(|| {
            Failure::Usage(format!("--dtype {}: bf16, f16 or f32 would do", options.dtype))
        })?;
        let place = Place::choose(options)?;
        let parallel = parallel(place, options);
        let (ranks, adapters) =
            (parallel.tensor, options.adapters.unwrap_or(largest_batch(options)).max(1));
        let spec = GroupSpec {
            config: &config,
            model: &model(dtype),
            parallel: &parallel,
            engine: &engine(&config, options, ranks, dtype),
            slots_max: adapters,
            progress: &Arc::new(Progress::default()),
            replica: 0,
            launch: None,
        };
        let group = Group::start(&spec)?;
        Ok(Self { options, config, dtype, group, place, ranks, adapters, loaded: None })
    }

    /// What is measured, in a line.
    pub fn title(&self) -> String {
        let instructions = match self.place {
            Place::Cpu { .. } => format!(" ({})", kernels::cpu::Isa::best()),
            Place::Gpu { .. } => String::new(),
        };
        format!(
            "{:?} {}, {} ranks on {}{instructions}, adapters of lora rank {}",
            self.options.shape,
            self.dtype,
            self.ranks,
            self.group.backend(),
            self.options.lora_rank,
        )
    }

    /// All prompts in one step: the base, then adapters of both kinds.
    pub fn prefill(&mut self) -> Result<Vec<Row>, Failure> {
        let (count, rows, block_tokens) = (self.options.prompts, self.options.prompt, BLOCK_TOKENS);
        let blocks = rows.div_ceil(BLOCK_TOKENS);
        let batch = |adapters| Sequences { count, block_tokens, blocks, adapters }.batch(0..rows);
        let (base, mixed) = (batch(0), batch(self.adapters));
        let run = Run { phase: "prefill", batch: count * rows, sequences: count, steps: PREFILLS };
        self.runs(&run, |_| (Arc::clone(&base), Arc::clone(&mixed)))
    }

    /// One token of each of `count` sequences a step: the base, then adapters of both kinds.
    pub fn decode(&mut self, count: usize) -> Result<Vec<Row>, Failure> {
        let (steps, adapters) = (self.options.steps, self.adapters);
        let blocks = (CONTEXT + steps + 1).div_ceil(BLOCK_TOKENS);
        let batch = |adapters, positions| {
            let block_tokens = BLOCK_TOKENS;
            Sequences { count, block_tokens, blocks, adapters }.batch(positions)
        };
        self.group.run(batch(0, 0..CONTEXT))?;
        let at = |step| CONTEXT + step..CONTEXT + step + 1;
        let run = Run { phase: "decode", batch: count, sequences: count, steps };
        self.runs(&run, |step| (batch(0, at(step)), batch(adapters, at(step))))
    }

    /// Steps of the base and of each kind of adapters in turn, so that all see the same weather.
    fn runs(
        &mut self,
        run: &Run,
        batches: impl Fn(usize) -> (Arc<Batch>, Arc<Batch>),
    ) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        for kind in self.options.lora.clone().into_iter().map(name) {
            kind.map_or(Ok(()), |kind| self.load(kind))?;
            let (mut base, mut mixed, mut bandwidth) = (Vec::new(), Vec::new(), Vec::new());
            for step in 0..=run.steps {
                let (plain, adapted) = batches(step);
                let plain = self.step(plain)?;
                let adapted = if kind.is_some() { Some(self.step(adapted)?) } else { None };
                if step > 0 {
                    base.push(plain);
                    mixed.extend(adapted);
                }
                if step % 8 == 0 {
                    bandwidth.push(self.place.bandwidth()?);
                }
            }
            let (base, bandwidth) = (median(base), median(bandwidth));
            if rows.is_empty() {
                rows.push(self.row(run, None, (base, base), bandwidth));
            }
            if kind.is_some() {
                rows.push(self.row(run, kind, (median(mixed), base), bandwidth));
            }
        }
        Ok(rows)
    }

    fn row(
        &self,
        run: &Run,
        kind: Option<Name>,
        (step_ms, base_ms): (f64, f64),
        bandwidth: f64,
    ) -> Row {
        let adapters = kind.map_or(0, |_| self.adapters.min(run.sequences));
        let each = kind.map_or(0, |kind| self.random(kind).elements() * self.dtype.bytes());
        Row {
            phase: run.phase,
            batch: run.batch,
            kind,
            adapters,
            step_ms,
            tokens_per_s: run.batch as f64 / step_ms * 1e3,
            floor_ms: (self.weight_bytes() + (adapters * each) as f64) / bandwidth / 1e6,
            bandwidth_gb_s: bandwidth,
            to_base: step_ms / base_ms,
        }
    }

    fn random(&self, kind: Name) -> Random<'_> {
        Random {
            base: &self.config.shape,
            ranks: self.ranks,
            kind,
            blocks: self.ranks * shapes::ranks(self.options.shape),
            lora_rank: self.options.lora_rank,
        }
    }

    fn load(&mut self, kind: Name) -> Result<(), Failure> {
        if self.loaded == Some(kind) {
            return Ok(());
        }
        for slot in 0..self.adapters as u32 {
            let generation = self.random(kind).generation(slot);
            self.group.load(Slot(slot), Arc::new(generation))?;
        }
        self.loaded = Some(kind);
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

/// What one run repeats.
struct Run {
    phase: &'static str,
    /// Rows of a step.
    batch: usize,
    sequences: usize,
    steps: usize,
}

fn name(kind: Lora) -> Option<Name> {
    match kind {
        Lora::Off => None,
        Lora::Plain => Some(Name::Plain),
        Lora::Bd => Some(Name::BlockDiagonal),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
