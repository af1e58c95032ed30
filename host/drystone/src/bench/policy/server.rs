//! A host with plugins to measure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::settings::{
    Allow, Breaker, Isolation, Limits, Mode, Plugin, Policy as Deployment, Scope,
};
use contract::policy::builtin::Builtin;
use contract::policy::hook::{Hook, OnError};
use policy::host::Host;
use serde_json::json;

use crate::Failure;

/// Room for instances; a multiple of what one plugin keeps waiting.
const INSTANCES: u32 = 256;
/// Time that a guest which never answers gets.
const BUDGET: Duration = Duration::from_millis(5);

/// A server's plugins, all of the same component.
#[derive(Clone)]
pub(super) struct Server {
    file: PathBuf,
    isolation: Isolation,
    enforced: usize,
    disabled: usize,
    instances: u32,
    watch: bool,
    cache_dir: Option<PathBuf>,
}

/// One plugin that keeps one instance.
pub(super) fn pooled(file: &Path) -> Server {
    let file = file.to_owned();
    Server {
        file,
        isolation: Isolation::Pooled,
        enforced: 1,
        disabled: 0,
        instances: INSTANCES,
        watch: false,
        cache_dir: None,
    }
}

impl Server {
    /// Every call has an instance of its own, made before.
    pub(super) fn fresh(self) -> Self {
        Self { isolation: Isolation::PerRequest, ..self }
    }

    /// Room for so few instances to each plugin that none wait.
    pub(super) fn cold(&self) -> Self {
        const DISABLED: usize = 31;
        Self { disabled: DISABLED, instances: DISABLED as u32, ..self.clone() }
    }

    pub(super) fn times(&self, plugins: usize) -> Self {
        Self { enforced: plugins, ..self.clone() }
    }

    /// Its file is looked at, and what was compiled is kept in `cache_dir`.
    pub(super) fn watched(self, cache_dir: Option<PathBuf>) -> Self {
        Self { watch: true, cache_dir, ..self }
    }

    pub(super) fn start(&self) -> Result<Host, Failure> {
        let modes = [(Mode::Enforce, self.enforced), (Mode::Disabled, self.disabled)];
        let modes = modes.into_iter().flat_map(|(mode, n)| std::iter::repeat_n(mode, n));
        let plugins = modes.enumerate().map(|(i, mode)| self.plugin(i, mode)).collect();
        let deployment = Deployment {
            plugins,
            root: None,
            cache_dir: self.cache_dir.clone(),
            instances_max: self.instances,
            watch: self.watch,
        };
        let started = Host::start(&deployment, Builtin::new("base", []));
        started.map_err(|error| Failure::Plugin(error.to_string()))
    }

    fn plugin(&self, number: usize, mode: Mode) -> Plugin {
        Plugin {
            name: format!("bench-{number}"),
            file: self.file.clone(),
            sha256: None,
            hooks: None,
            scope: Scope::default(),
            mode,
            on_error: [OnError::Open; Hook::ALL.len()],
            isolation: self.isolation,
            limits: limits(),
            breaker: Breaker { failures: 0, window: BUDGET, cooldown: BUDGET },
            allow: everything(),
            config: json!({}),
            record: None,
        }
    }
}

fn limits() -> Limits {
    Limits {
        cpu: BUDGET,
        memory_bytes: 32 << 20,
        output_bytes: 64 << 10,
        host_copy_bytes: 1 << 20,
        concurrency: 64,
    }
}

fn everything() -> Allow {
    Allow {
        headers: vec!["x-tenant".to_owned()],
        messages: true,
        text: true,
        kv_bytes: 1 << 20,
        clock: true,
        random: true,
        metrics: true,
        adapters: true,
        replicas: true,
        wasi: true,
    }
}
