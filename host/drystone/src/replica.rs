//! Builds the parts of one replica and wires them: ranks below, engine above.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::handle::{Engine, Parts};
use engine::metrics::Metrics;
use gateway::app::Replica;
use indicatif::{ProgressBar, ProgressStyle};
use model::blueprint::Progress;
use prometheus_client::registry::Registry;
use ranks::group::{Group, GroupSpec};

use crate::Failure;
use crate::survey::Survey;

/// Loads the weights and starts the engine.
pub fn start(survey: &Survey) -> Result<Replica, Failure> {
    let begun = Instant::now();
    let group = ranks(survey)?;
    let counts = Arc::clone(group.counts());
    let limits = group.limits();
    let metrics = Arc::new(Metrics::new(&survey.settings.model.name, limits.positions_max));
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
    tracing::info!(
        model = survey.settings.model.name,
        ranks = survey.settings.parallel.tensor,
        kv_blocks = limits.blocks,
        context_max = limits.positions_max,
        "ready after {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(Replica { engine, counts, registry })
}

/// Starts the ranks, with a progress bar while they load.
fn ranks(survey: &Survey) -> Result<Group, Failure> {
    let progress = Arc::new(Progress::default());
    let spec = GroupSpec {
        config: &survey.model,
        model: &survey.settings.model,
        parallel: &survey.settings.parallel,
        engine: &survey.settings.engine,
        slots_max: survey.settings.adapters.slots_max,
        progress: &progress,
    };
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
        Ok(group)
    })
}

fn bar() -> ProgressBar {
    let template = "loading weights {bar:40} {bytes}/{total_bytes} ({eta})";
    let style = ProgressStyle::with_template(template);
    let style = style.expect("the template is a constant: this is a bug");
    ProgressBar::new(0).with_style(style)
}
