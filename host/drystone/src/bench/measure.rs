//! Starts ranks on random weights and times their steps, which are started as the engine does:
//! where it pays, each before the one ahead of it is done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use contract::adapter::Slot;
use contract::base::Projection;
use contract::step::{Batch, Executor, StepOutput};
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
use crate::bench::table::{Idle, Row};
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
    /// What the steps in flight are, the oldest first.
    flights: VecDeque<Step>,
}

/// What a step is run for.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Warming,
    Base,
    Adapted,
}

/// Times of the steps of one kind.
#[derive(Default)]
struct Times {
    elapsed_ms: Vec<f64>,
    /// Of the device before each, where it is measured.
    idle_us: Vec<f64>,
}

impl Times {
    fn note(&mut self, output: &StepOutput) {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        self.elapsed_ms.push(us(output.elapsed) / 1e3);
        self.idle_us.extend(output.idle.map(us));
    }

    fn idle(&self) -> Option<Idle> {
        let mut sorted = self.idle_us.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get((sorted.len() as f64 * share) as usize).copied();
        Some(Idle { median_us: at(0.5)?, p99_us: at(0.99)? })
    }
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
        let mut group = Group::start(&spec)?;
        group.time_idle()?;
        let flights = VecDeque::new();
        Ok(Self { options, config, dtype, group, place, ranks, adapters, loaded: None, flights })
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
        let sequences =
            |adapters| Sequences { count, block_tokens, blocks, adapters, follow: false };
        let batch = |adapters| sequences(adapters).batch(0..rows);
        let (base, mixed) = (batch(0), batch(self.adapters));
        let run = Run { phase: "prefill", batch: count * rows, sequences: count, steps: PREFILLS };
        self.runs(&run, |_| (Arc::clone(&base), Arc::clone(&mixed)))
    }

    /// One token of each of `count` sequences a step: the base, then adapters of both kinds.
    pub fn decode(&mut self, count: usize) -> Result<Vec<Row>, Failure> {
        let (steps, adapters) = (self.options.steps, self.adapters);
        let blocks = (CONTEXT + steps + 1).div_ceil(BLOCK_TOKENS);
        let follow = self.group.runs_ahead();
        let sequences = |adapters, follow| {
            let block_tokens = BLOCK_TOKENS;
            Sequences { count, block_tokens, blocks, adapters, follow }
        };
        self.group.run(sequences(0, false).batch(0..CONTEXT))?;
        let batch =
            |adapters, step| sequences(adapters, follow).batch(CONTEXT + step..CONTEXT + step + 1);
        let run = Run { phase: "decode", batch: count, sequences: count, steps };
        self.runs(&run, |step| (batch(0, step), batch(adapters, step)))
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
            let (mut base, mut adapted, mut bandwidth) =
                (Times::default(), Times::default(), Vec::new());
            let mut note = |done: Option<(Step, StepOutput)>| match done {
                Some((Step::Base, output)) => base.note(&output),
                Some((Step::Adapted, output)) => adapted.note(&output),
                Some((Step::Warming, _)) | None => {}
            };
            for step in 0..=run.steps {
                let of = |kind| if step == 0 { Step::Warming } else { kind };
                let (plain, mixed) = batches(step);
                note(self.step(of(Step::Base), plain)?);
                if kind.is_some() {
                    note(self.step(of(Step::Adapted), mixed)?);
                }
                if step % 8 == 0 {
                    bandwidth.push(self.place.bandwidth()?);
                }
            }
            note(self.finish()?);
            let bandwidth = median(&bandwidth);
            if rows.is_empty() {
                rows.push(self.row(run, None, (&base, &base), bandwidth));
            }
            if kind.is_some() {
                rows.push(self.row(run, kind, (&adapted, &base), bandwidth));
            }
        }
        Ok(rows)
    }

    /// Starts a step. What is done by then: that step, or the one before where ranks run ahead and
    /// the engine would have them: not of prefill.
    fn step(
        &mut self,
        step: Step,
        batch: Arc<Batch>,
    ) -> Result<Option<(Step, StepOutput)>, Failure> {
        let follows = self.group.runs_ahead() && batch.spans.len() == batch.tokens.len();
        self.group.start(batch);
        self.flights.push_back(step);
        if self.flights.len() > usize::from(follows) {
            return self.finish();
        }
        Ok(None)
    }

    /// Waits for the oldest step in flight.
    fn finish(&mut self) -> Result<Option<(Step, StepOutput)>, Failure> {
        let Some(step) = self.flights.pop_front() else { return Ok(None) };
        Ok(Some((step, self.group.finish()?)))
    }

    fn row(
        &self,
        run: &Run,
        kind: Option<Name>,
        (times, base): (&Times, &Times),
        bandwidth: f64,
    ) -> Row {
        let adapters = kind.map_or(0, |_| self.adapters.min(run.sequences));
        let each = kind.map_or(0, |kind| self.random(kind).elements() * self.dtype.bytes());
        let step_ms = median(&times.elapsed_ms);
        Row {
            phase: run.phase,
            batch: run.batch,
            kind,
            adapters,
            step_ms,
            tokens_per_s: run.batch as f64 / step_ms * 1e3,
            floor_ms: (self.weight_bytes() + (adapters * each) as f64) / bandwidth / 1e6,
            bandwidth_gb_s: bandwidth,
            to_base: step_ms / median(&base.elapsed_ms),
            idle: times.idle(),
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

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
