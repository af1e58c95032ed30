//! A host with one plugin, and how it is asked.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use config::settings::{
    Allow, Breaker, Isolation, Limits, Mode, Plugin, Policy as Deployment, Scope,
};
use contract::policy::Policy;
use contract::policy::builtin::Builtin;
use contract::policy::deploy::{PluginStatus, Plugins};
use contract::policy::hook::Hook;
use contract::policy::replica::{Demand, Replica};
use contract::policy::subject::Subject;
use tempfile::TempDir;

use super::guest::Guest;
use crate::host::{Host, StartError};

/// What the server itself says about [`replicas`].
pub(super) const BUILTIN: [f32; 2] = [5.0, 9.0];

pub(super) struct Rig {
    pub(super) host: Host,
    pub(super) deployment: Deployment,
    _folder: TempDir,
}

impl Rig {
    /// Starts a host whose only plugin is `guest`, with settings that `change` makes.
    pub(super) fn new(guest: Guest, change: impl FnOnce(&mut Plugin)) -> Self {
        start(&guest.wasm(), change).expect("the guest can be used")
    }

    /// What is said about two replicas, the first of which runs 1 sequence, the second 5.
    pub(super) async fn scores(&self) -> Vec<f32> {
        let (subject, demand) = (Subject::default(), Demand::default());
        let scores = self.host.score_replicas(&subject, &demand, &replicas()).await;
        scores.expect("no operator here wants a failed score refused")
    }

    pub(super) fn status(&self) -> PluginStatus {
        self.host.list().pop().expect("there is one plugin")
    }

    /// How many calls of any hook had this outcome.
    pub(super) fn calls(&self, outcome: &str) -> u64 {
        let label = format!("outcome=\"{outcome}\"}} ");
        self.count("calls_total", &label)
    }

    /// How many answers of a shadow would have changed something.
    pub(super) fn differences(&self) -> u64 {
        self.count("shadow_differences_total", "} ")
    }

    /// The sum of the lines of a counter, whose number comes after `label`.
    fn count(&self, name: &str, label: &str) -> u64 {
        let mut registry = prometheus_client::registry::Registry::default();
        self.host.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let lines = text.lines().filter(|line| line.contains(name));
        let counts = lines.filter_map(|line| line.split_once(label));
        counts.map(|(_, count)| count.parse::<u64>().expect("a number")).sum()
    }
}

fn replicas() -> [Replica; 2] {
    [1, 5].map(|running| Replica { running, ..Replica::default() })
}

/// Starts a host whose only plugin is `wasm`.
pub(super) fn start(wasm: &[u8], change: impl FnOnce(&mut Plugin)) -> Result<Rig, StartError> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("guest.wasm");
    std::fs::write(&file, wasm).expect("a file");
    let mut plugin = plugin(file);
    change(&mut plugin);
    let deployment = Deployment {
        plugins: vec![plugin],
        root: Some(folder.path().to_owned()),
        cache_dir: Some(folder.path().join("cache")),
        instances_max: 64,
        watch: false,
    };
    let host = Host::start(&deployment, Builtin::new("base", []))?;
    Ok(Rig { host, deployment, _folder: folder })
}

fn plugin(file: PathBuf) -> Plugin {
    Plugin {
        name: "guest".to_owned(),
        file,
        sha256: None,
        hooks: None,
        scope: Scope::default(),
        mode: Mode::Enforce,
        on_error: Hook::ALL.map(Hook::default_on_error),
        isolation: Isolation::PerRequest,
        limits: Limits {
            cpu: Duration::from_millis(20),
            memory_bytes: 1 << 20,
            output_bytes: 64 << 10,
            host_copy_bytes: 1 << 20,
            concurrency: 8,
        },
        breaker: Breaker {
            failures: 0,
            window: Duration::from_secs(60),
            cooldown: Duration::from_secs(60),
        },
        allow: Allow::default(),
        config: serde_json::json!({}),
        record: None,
    }
}

/// Runs `work` on the one thread that a careless guest could keep busy.
pub(super) fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(work)
}
