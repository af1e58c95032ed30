//! Builds the parts of each replica and wires them: ranks below, engine above.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::environment::launch;
use config::launch::Launch;
use config::settings::Parallel;
use engine::handle::{Engine, Parts};
use engine::metrics::Metrics;
use gateway::app::Replica;
use indicatif::{ProgressBar, ProgressStyle};
use model::blueprint::Progress;
use prometheus_client::registry::Registry;
use ranks::follow;
use ranks::group::{Group, GroupSpec};

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
    let spec = spec(survey, &survey.settings.parallel, &progress, Some(launch));
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
    tracing::info!(
        replica = number,
        kv_blocks = limits.blocks,
        context_max = limits.positions_max,
        "a replica is up"
    );
    Ok(Replica { engine, counts, registry })
}

/// Starts the ranks of one replica, with a progress bar while they load.
fn ranks(survey: &Survey, number: usize, launch: Option<&Launch>) -> Result<Group, Failure> {
    let progress = Arc::new(Progress::default());
    let parallel = share(&survey.settings.parallel, number);
    let spec = spec(survey, &parallel, &progress, launch);
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

fn spec<'a>(
    survey: &'a Survey,
    parallel: &'a Parallel,
    progress: &'a Arc<Progress>,
    launch: Option<&'a Launch>,
) -> GroupSpec<'a> {
    GroupSpec {
        config: &survey.model,
        model: &survey.settings.model,
        parallel,
        engine: &survey.settings.engine,
        slots_max: survey.settings.adapters.slots_max,
        progress,
        launch,
    }
}

/// The part of devices and cores that one replica gets.
fn share(parallel: &Parallel, number: usize) -> Parallel {
    let Parallel { tensor, replicas, .. } = *parallel;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let devices = match parallel.devices.is_empty() {
        // Counted up from 0 over all replicas, which is what one of them does by itself.
        true if replicas == 1 => Vec::new(),
        true => (number * tensor..(number + 1) * tensor).collect(),
        false => parallel.devices[number * tensor..(number + 1) * tensor].to_vec(),
    };
    let threads = parallel.threads.or(Some((cores / (tensor * replicas)).max(1)));
    Parallel { devices, threads, ..parallel.clone() }
}

fn bar() -> ProgressBar {
    let template = "loading weights {bar:40} {bytes}/{total_bytes} ({eta})";
    let style = ProgressStyle::with_template(template);
    let style = style.expect("the template is a constant: this is a bug");
    ProgressBar::new(0).with_style(style)
}

#[cfg(test)]
mod tests {
    use config::settings::{Backend, CommKind};

    use super::*;

    fn parallel(devices: &[usize], replicas: usize) -> Parallel {
        Parallel {
            backend: Backend::Auto,
            tensor: 2,
            replicas,
            threads: Some(3),
            comm: CommKind::Auto,
            devices: devices.to_vec(),
        }
    }

    #[test]
    fn replicas_share_devices_in_their_order() {
        let devices = |given: &[usize]| [0, 1].map(|at| share(&parallel(given, 2), at).devices);
        assert_eq!(devices(&[5, 4, 3, 2]), [[5, 4], [3, 2]]);
        assert_eq!(devices(&[]), [[0, 1], [2, 3]]);
        assert!(share(&parallel(&[], 1), 0).devices.is_empty());
        assert_eq!(share(&parallel(&[], 2), 1).threads, Some(3));
    }
}
