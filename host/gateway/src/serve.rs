//! The accept loop: bounded connections, patience with slow ones, and a graceful end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::app::App;
use crate::routes;

/// Connections at once; more wait in the system's backlog.
const CONNECTIONS_MAX: usize = 8192;
/// Connections that wait to be accepted, where the system allows as many.
const PENDING_MAX: u32 = 4096;
/// How long a connection may take to send the head of a request, idle time included.
const HEAD_READ_MAX: Duration = Duration::from_secs(75);
/// How long a connection may take nothing of what is written to it.
const WRITE_STALL_MAX: Duration = Duration::from_secs(60);
/// Pause after the system refused a connection, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens with room for a burst: beyond the usual 128 pending connections, clients would wait a
/// second before they try again.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(PENDING_MAX)
}

/// Serves `app` until `shutdown` resolves. Then new requests get 503, running ones have the
/// configured time to end, and what is left after it is cut.
pub async fn serve(listener: TcpListener, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    let mut connections = Connections::new(listener, routes::router(app.clone()));
    let graceful = GracefulShutdown::new();
    connections.accept_until(shutdown, || graceful.watcher()).await;
    app.drain();
    let drained = timeout(app.settings.drain, graceful.shutdown());
    // Newcomers are told that the server is going, so that a balancer takes them elsewhere.
    let nobody_waits_for = GracefulShutdown::new();
    let ended = async {
        let in_time = drained.await.is_ok();
        tracing::info!(in_time, "drained");
    };
    connections.accept_until(ended, || nobody_waits_for.watcher()).await;
}

/// Dropping it cuts what is open.
struct Connections {
    listener: TcpListener,
    router: Router,
    permits: Arc<Semaphore>,
    open: JoinSet<()>,
}

impl Connections {
    fn new(listener: TcpListener, router: Router) -> Self {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { listener, router, permits, open: JoinSet::new() }
    }

    async fn accept_until(&mut self, end: impl Future<Output = ()>, watcher: impl Fn() -> Watcher) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                Some(_) = self.open.join_next() => {}
                (stream, permit) = accept(&self.listener, &self.permits) => {
                    let connection = connection(stream, self.router.clone(), watcher());
                    self.open.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there is always a permit in the end.
    let permit = permits.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, watcher: Watcher) {
    // Events are small and must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_STALL_MAX));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(%error, "a connection broke off");
    }
}
