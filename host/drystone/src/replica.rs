//! Builds the parts of each replica and wires them: ranks below, engine above.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::environment::launch;
use config::launch::Launch;
use engine::handle::{Engine, Parts};
use engine::metrics::Metrics;
use gateway::app::Replica;
use indicatif::{ProgressBar, ProgressStyle};
use model::blueprint::Progress;
use model::footprint::block_bytes;
use prometheus_client::registry::Registry;
use ranks::follow;
use ranks::group::{Group, GroupSpec, Limits};

use crate::Failure;
use crate::survey::Survey;

/// Loads the weights and starts the engines, one replica after the other.
pub fn start(survey: &Survey) -> Result<Vec<Replica>, Failure> {
    let begun = Instant::now();
    let replicas = survey.settings.parallel.replicas;
    let launch = launch()?;
    if let Some(launch) = launch.as_ref().filter(|_| replicas > 1) {
        let processes = launch.processes;
        return Err(Failure::Usage(format!(
            "parallel.replicas = {replicas} on {processes} processes: 1 would do, as they are one \
             replica together"
        )));
    }
    let started = (0..replicas)
        .map(|number| one(survey, number, launch.as_ref()))
        .collect::<Result<_, _>>()?;
    tracing::info!(
        model = survey.settings.model.name,
        replicas,
        ranks = survey.settings.parallel.tensor,
        "ready after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(started)
}

/// Lends this process's ranks to the one that serves, until that ends.
pub fn follow(survey: &Survey, launch: &Launch) -> Result<(), Failure> {
    let Launch { process, processes, leader, port, .. } = launch;
    tracing::info!("process {process} of {processes}: following {leader}:{port}");
    let progress = Arc::default();
    let spec = spec(survey, 0, &progress, Some(launch));
    follow::follow(&spec, launch)?;
    tracing::info!("process {process} of {processes}: the one that serves has ended");
    Ok(())
}

fn one(survey: &Survey, number: usize, launch: Option<&Launch>) -> Result<Replica, Failure> {
    let group = ranks(survey, number, launch)?;
    let counts = Arc::clone(group.counts());
    let limits = group.limits();
    let name = &survey.settings.model.name;
    let metrics = Arc::new(Metrics::new(name, number, limits.positions_max));
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let engine = Engine::start(Parts {
        executor: Box::new(group),
        blocks: limits.blocks,
        vocab: survey.model.shape.vocab,
        context_max: limits.positions_max,
        text: Arc::clone(&survey.text),
        catalogue: Arc::clone(&survey.catalogue),
        settings: survey.settings.engine.clone(),
        slots_max: survey.settings.adapters.slots_max,
        host_bytes: survey.settings.adapters.host_bytes,
        metrics,
    })?;
    announce(survey, number, limits);
    Ok(Replica { engine, counts, registry })
}

/// Says what there is room for.
fn announce(survey: &Survey, number: usize, limits: Limits) {
    let Limits { blocks, positions_max, .. } = limits;
    let (engine, ranks) = (&survey.settings.engine, survey.settings.parallel.tensor);
    let tokens = engine.block_tokens;
    let block_bytes = block_bytes(&survey.model.shape, ranks, tokens, survey.dtype().bytes());
    let gib = (blocks as u64 * ranks as u64 * block_bytes) as f64 / (1u64 << 30) as f64;
    tracing::info!(
        replica = number,
        context_max = positions_max,
        "a replica is up: its KV cache has {blocks} blocks, {} tokens, {gib:.2} GiB",
        blocks * tokens,
    );
    let (whole, wanted) = (survey.model.positions_max, survey.settings.model.context_max);
    if wanted.is_none() && positions_max < whole {
        tracing::warn!(
            "sequences are up to {positions_max} tokens long, as the KV cache has no more room; \
             the model was made for {whole}"
        );
    }
}

/// Starts the ranks of one replica, with a progress bar while they load.
fn ranks(survey: &Survey, number: usize, launch: Option<&Launch>) -> Result<Group, Failure> {
    let progress = Arc::new(Progress::default());
    let spec = spec(survey, number, &progress, launch);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| Group::start(&spec));
        let bar = bar();
        while !loading.is_finished() {
            bar.set_length(progress.total());
            bar.set_position(progress.done());
            std::thread::sleep(Duration::from_millis(20));
        }
        bar.finish_and_clear();
        let group = loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        tracing::info!("the ranks compute on {}", group.backend());
        let (gb, seconds) = (progress.done() as f64 / 1e9, progress.took().as_secs_f64());
        tracing::info!("{gb:.3} GB of weights in {seconds:.2} s, {:.1} GB/s", gb / seconds);
        Ok(group)
    })
}

/// What one replica is made of.
pub fn spec<'a>(
    survey: &'a Survey,
    replica: usize,
    progress: &'a Arc<Progress>,
    launch: Option<&'a Launch>,
) -> GroupSpec<'a> {
    GroupSpec {
        config: &survey.model,
        model: &survey.settings.model,
        parallel: &survey.settings.parallel,
        engine: &survey.settings.engine,
        slots_max: survey.settings.adapters.slots_max,
        progress,
        replica,
        launch,
    }
}

fn bar() -> ProgressBar {
    let template = "loading weights {bar:40} {bytes}/{total_bytes} ({eta})";
    let style = ProgressStyle::with_template(template);
    let style = style.expect("the template is a constant: this is a bug");
    ProgressBar::new(0).with_style(style)
}
