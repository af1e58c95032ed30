//! Servers on a free port of the loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::settings::{ApiKey, Server as Settings, Upstream};
use contract::counts::{CollectiveCounts, Purpose};
use contract::policy::Policy;
use contract::policy::builtin::Builtin;
use contract::policy::deploy::Plugins;
use contract::policy::subject::Tenant;
use engine::handle::{Engine, Root};
use engine::metrics::Metrics;
use gateway::app::{App, Replica};
use gateway::replicas::Replicas;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::script::{self, Bounds};

/// The name of the base.
pub const BASE: &str = "base";

/// What a server is started with.
pub struct Options {
    /// Of its engine; none leaves it starting.
    pub bounds: Option<Bounds>,
    /// Engines that it has.
    pub engines: usize,
    /// Other servers.
    pub upstreams: Vec<Upstream>,
    /// Where adapters may be loaded from.
    pub root: Option<PathBuf>,
    /// Keys that may call.
    pub keys: Vec<ApiKey>,
    /// Keys that open `/admin`.
    pub admin_keys: Vec<ApiKey>,
    /// In place of the built-in one.
    pub policy: Option<Arc<dyn Policy>>,
    /// What operators may change.
    pub plugins: Option<Arc<dyn Plugins>>,
    /// Largest body.
    pub body_bytes_max: usize,
    /// Longest request.
    pub request_timeout: Duration,
    /// Longest drain.
    pub drain: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bounds: Some(Bounds::default()),
            engines: 1,
            upstreams: Vec::new(),
            root: None,
            keys: Vec::new(),
            admin_keys: Vec::new(),
            policy: None,
            plugins: None,
            body_bytes_max: 1 << 20,
            request_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// A server that runs in this process.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its state.
    pub app: Arc<App>,
    /// Its engine, once there is one.
    pub engine: Option<Engine>,
    /// All its engines.
    pub engines: Vec<Engine>,
    upstreams: Vec<Upstream>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Server {
    /// A server as most tests want it.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// A server whose engine takes `step` for every token.
    pub async fn slow(step: Duration) -> Self {
        let bounds = Some(Bounds { step, ..Bounds::default() });
        Self::with(Options { bounds, ..Options::default() }).await
    }

    /// A server.
    pub async fn with(options: Options) -> Self {
        let listener = gateway::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            listen: address,
            api_keys: options.keys,
            admin_keys: options.admin_keys,
            drain: options.drain,
            body_bytes_max: options.body_bytes_max,
            request_timeout: options.request_timeout,
        };
        let keys =
            settings.api_keys.iter().map(|key| (key.key.clone(), Tenant(key.tenant.clone())));
        let builtin = || Arc::new(Builtin::new(BASE, keys)) as Arc<dyn Policy>;
        let policy = options.policy.unwrap_or_else(builtin);
        let mut app = App::new(settings, policy, BASE.to_owned());
        if let Some(plugins) = options.plugins {
            app = app.with_plugins(plugins, Registry::default());
        }
        if let Some(root) = options.root {
            app = app.with_adapter_root(Root::open(&root).unwrap());
        }
        let app = Arc::new(app);
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let served = tokio::spawn(gateway::serve(listener, app.clone(), shutdown));
        let mut server = Self {
            address,
            app,
            engine: None,
            engines: Vec::new(),
            upstreams: options.upstreams,
            stop,
            served,
        };
        if let Some(bounds) = options.bounds {
            server.open_all(bounds, options.engines);
        }
        server
    }

    /// Gives the server its engine.
    pub fn open(&mut self, bounds: Bounds) {
        self.open_all(bounds, 1);
    }

    /// Gives the server its engines, and each two collectives of the base to count.
    pub fn open_all(&mut self, bounds: Bounds, engines: usize) {
        let catalogue = Arc::new(script::catalogue());
        let replica = |number| {
            let metrics = Arc::new(Metrics::new(BASE, number, 512));
            let mut registry = Registry::default();
            metrics.register(&mut registry);
            let engine = script::engine(bounds, metrics, Arc::clone(&catalogue));
            let counts = Arc::new(CollectiveCounts::default());
            (0..2).for_each(|_| counts.add(Purpose::Base));
            Replica { engine, counts, registry }
        };
        let replicas: Vec<_> = (0..engines).map(replica).collect();
        self.engines = replicas.iter().map(|replica| replica.engine.clone()).collect();
        self.engine = self.engines.first().cloned();
        self.app.open(Replicas::new(replicas, &self.upstreams, BASE).unwrap());
        self.app.announce();
    }

    /// The engine, once there is one.
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// Asks the server to stop; what is returned ends when it has.
    pub fn stop(self) -> impl Future<Output = ()> {
        self.stop.send(()).unwrap();
        async { self.served.await.unwrap() }
    }
}

/// Waits for something that another thread is about to do.
pub async fn until(what: &str, happened: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !happened() {
        assert!(Instant::now() < patience, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
