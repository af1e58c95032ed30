//! `drystone serve`: listen at once, load, serve, and drain when told to stop.

use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use config::environment::launch;
use contract::counts::CollectiveCounts;
use gateway::replicas::Replicas;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::Failure;
use crate::policies;
use crate::replica;
use crate::survey::Survey;

/// Exit status of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Serves the deployment in `file` until it is told to stop. Of several processes that a launcher
/// started, the first serves, and the others lend it their ranks.
pub fn command(file: &Path) -> Result<(), Failure> {
    let survey = Survey::of(config::load(file)?)?;
    match launch()? {
        Some(launch) if launch.process > 0 => replica::follow(&survey, &launch),
        _ => serve(survey, |_| Ok(())),
    }
}

/// A server that answers.
pub struct Ready {
    /// Where it listens.
    pub address: SocketAddr,
    /// Collectives of its ranks, a replica each.
    pub counts: Vec<Arc<CollectiveCounts>>,
    stop: oneshot::Sender<()>,
}

impl Ready {
    /// Stops the server; running requests get their time to end, as after SIGTERM.
    pub fn stop(self) {
        let _ = self.stop.send(());
    }
}

/// Serves `survey`. Once the replica is up, calls `ready` on a thread of its own, and is ready for
/// others when that returns; if it fails, so does the server.
pub fn serve<F>(survey: Survey, ready: F) -> Result<(), Failure>
where
    F: FnOnce(Ready) -> Result<(), Failure> + Send + 'static,
{
    // Every stream is a descriptor, and the usual soft limit of 1,024 is below what may be open.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let app = policies::app(&survey.settings)?;
    let served = runtime.block_on(async {
        let (listener, address) = listen(survey.settings.server.listen)?;
        tracing::info!("listening on http://{address}");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            tokio::select! { () = told_to_stop() => {}, Ok(()) = stopped => {} }
        };
        let mut server = tokio::spawn(gateway::serve(listener, Arc::clone(&app), shutdown));
        let open = tokio::task::spawn_blocking(move || {
            let replicas = replica::start(&survey)?;
            let counts = replicas.iter().map(|replica| Arc::clone(&replica.counts)).collect();
            let (upstreams, name) = (&survey.settings.upstreams, &survey.settings.model.name);
            if let Some(replicas) = Replicas::new(replicas, upstreams, name) {
                app.open(replicas);
            }
            ready(Ready { address, counts, stop })?;
            app.announce();
            Ok::<_, Failure>(())
        });
        tokio::select! {
            opened = open => opened.unwrap_or_else(|error| resume_unwind(error.into_panic()))?,
            ended = &mut server => return ended.map_err(|error| resume_unwind(error.into_panic())),
        }
        server.await.map_err(|error| resume_unwind(error.into_panic()))
    });
    // A load that was interrupted has nothing left to save.
    runtime.shutdown_background();
    served
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = gateway::listen(address);
    let listener = listener.map_err(|source| Failure::Listen { address, source })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Waits for Ctrl-C or SIGTERM; from then on another one ends the program at once.
async fn told_to_stop() {
    next_signal().await;
    tracing::info!("finishing what runs; press Ctrl-C again to stop at once");
    tokio::spawn(async {
        next_signal().await;
        std::process::exit(INTERRUPTED);
    });
}

async fn next_signal() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
