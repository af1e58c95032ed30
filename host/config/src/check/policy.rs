//! Checks `[policy]`, `[[plugin]]` and `[[upstream]]`.

use std::collections::HashSet;
use std::time::Duration;

use contract::policy::hook::{Hook, OnError};
use contract::policy::subject::Route;

use crate::check::Checker;
use crate::raw;
use crate::settings::{
    Allow, Breaker, Isolation, Limits, Mode, Plugin, Policy, Record, Scope, Upstream,
};

/// A request's plugins are a mask of 64 bits.
const PLUGINS_MAX: usize = 64;
/// Longest name of a plugin or an upstream.
const NAME_MAX: usize = 64;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

impl Checker<'_> {
    pub(super) fn policy(&mut self, raw: raw::Policy, plugins: Vec<raw::Plugin>) -> Policy {
        if plugins.len() > PLUGINS_MAX {
            let remedy = format!("at most {PLUGINS_MAX} would do");
            self.wrong("plugin", format!("{} of them", plugins.len()), &remedy);
        }
        self.positive("policy.instances_max", raw.instances_max as usize);
        self.unique("plugin.name", plugins.iter().map(|plugin| plugin.name.as_str()));
        Policy {
            plugins: plugins.into_iter().map(|plugin| self.plugin(plugin)).collect(),
            root: self.folder("policy.root", raw.root),
            cache_dir: raw.cache_dir.map(|dir| self.folder.join(dir)),
            instances_max: raw.instances_max,
            watch: raw.watch,
        }
    }

    fn plugin(&mut self, raw: raw::Plugin) -> Plugin {
        let name = &raw.name;
        let modes =
            [("enforce", Mode::Enforce), ("shadow", Mode::Shadow), ("disabled", Mode::Disabled)];
        let isolations = [("per-request", Isolation::PerRequest), ("pooled", Isolation::Pooled)];
        let key = |field: &str| format!("plugin {name:?} {field}");
        let file = self.folder.join(&raw.source.file);
        if !file.is_file() {
            let remedy = format!("no file {}", file.display());
            self.wrong(&key("source.file"), raw.source.file.display(), &remedy);
        }
        let digest =
            |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(sha256) = raw.source.sha256.as_ref().filter(|text| !digest(text)) {
            self.wrong(&key("source.sha256"), sha256, "64 hexadecimal digits would do");
        }
        Plugin {
            file,
            sha256: raw.source.sha256.map(|text| text.to_ascii_lowercase()),
            hooks: raw
                .hooks
                .map(|hooks| hooks.iter().map(|hook| self.hook(&key("hooks"), hook)).collect()),
            scope: self.scope(&key("match.routes"), raw.scope),
            mode: self.one_of(&key("mode"), &raw.mode, &modes),
            on_error: self.on_error(&key("on_error"), raw.on_error),
            isolation: self.one_of(&key("isolation"), &raw.isolation, &isolations),
            limits: self.limits(&key("limits"), &raw.limits),
            breaker: Breaker {
                failures: raw.breaker.failures,
                window: Duration::from_secs(raw.breaker.window_s.into()),
                cooldown: Duration::from_secs(raw.breaker.cooldown_s.into()),
            },
            allow: raw.allow.into(),
            config: json(raw.config),
            record: raw.record.map(|record| Record {
                file: self.folder.join(record.file),
                redact: record.redact,
                bytes_max: u64::from(record.mib_max) << 20,
            }),
            name: raw.name,
        }
    }

    fn hook(&mut self, key: &str, name: &str) -> Hook {
        self.one_of(key, name, &Hook::ALL.map(|hook| (hook.name(), hook)))
    }

    fn scope(&mut self, key: &str, raw: raw::Match) -> Scope {
        let routes = Route::ALL.map(|route| (route.name(), route));
        let route = |name: &String| self.one_of(key, name, &routes);
        Scope {
            tenants: raw.tenants,
            models: raw.models,
            routes: raw.routes.map(|names| names.iter().map(route).collect()),
        }
    }

    fn on_error(&mut self, key: &str, raw: Option<raw::OnError>) -> [OnError; Hook::ALL.len()] {
        let answers =
            [("closed", OnError::Closed), ("open", OnError::Open), ("fallback", OnError::Fallback)];
        let mut by_hook = Hook::ALL.map(Hook::default_on_error);
        match raw {
            None => {}
            Some(raw::OnError::All(answer)) => by_hook.fill(self.one_of(key, &answer, &answers)),
            Some(raw::OnError::ByHook(table)) => {
                for (hook, answer) in table {
                    let hook = self.hook(key, &hook);
                    by_hook[hook as usize] = self.one_of(key, &answer, &answers);
                }
            }
        }
        by_hook
    }

    fn limits(&mut self, key: &str, raw: &raw::Limits) -> Limits {
        for (field, value) in [
            ("cpu_ms", raw.cpu_ms),
            ("memory_mib", raw.memory_mib),
            ("output_kib", raw.output_kib),
            ("host_copy_kib", raw.host_copy_kib),
            ("concurrency", raw.concurrency),
        ] {
            self.positive(&format!("{key}.{field}"), value as usize);
        }
        Limits {
            cpu: Duration::from_millis(raw.cpu_ms.into()),
            memory_bytes: raw.memory_mib as usize * MIB,
            output_bytes: raw.output_kib as usize * KIB,
            host_copy_bytes: raw.host_copy_kib as usize * KIB,
            concurrency: raw.concurrency as usize,
        }
    }

    pub(super) fn upstreams(&mut self, raw: Vec<raw::Upstream>) -> Vec<Upstream> {
        self.unique("upstream.name", raw.iter().map(|upstream| upstream.name.as_str()));
        raw.into_iter().map(|upstream| self.upstream(upstream)).collect()
    }

    fn upstream(&mut self, raw: raw::Upstream) -> Upstream {
        let rest = raw.url.strip_prefix("http://").unwrap_or_default();
        if rest.trim_end_matches('/').is_empty() {
            self.wrong("upstream.url", &raw.url, "http://host:port would do");
        }
        self.positive("upstream.concurrency", raw.concurrency as usize);
        let key = raw.key_file.and_then(|file| {
            let text = std::fs::read_to_string(self.folder.join(&file));
            let key = text.map(|text| text.lines().next().unwrap_or_default().trim().to_owned());
            let why = |error: std::io::Error| {
                self.wrong("upstream.key_file", file.display(), &error.to_string());
            };
            key.map_err(why).ok()
        });
        let url = raw.url.trim_end_matches('/').to_owned();
        Upstream { name: raw.name, url, key, concurrency: raw.concurrency as usize }
    }

    fn unique<'a>(&mut self, key: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = HashSet::new();
        for name in names {
            let legal =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(legal) {
                let remedy = format!("1 to {NAME_MAX} of a-z, 0-9 and - would do");
                self.wrong(key, format!("{name:?}"), &remedy);
            }
            if !seen.insert(name) {
                self.wrong(key, format!("{name:?}"), "is there twice; give each its own");
            }
        }
    }
}

impl From<raw::Allow> for Allow {
    fn from(raw: raw::Allow) -> Self {
        Self {
            headers: raw.headers.iter().map(|name| name.to_ascii_lowercase()).collect(),
            messages: raw.messages,
            text: raw.text,
            kv_bytes: raw.kv_kib as usize * KIB,
            clock: raw.clock,
            random: raw.random,
            metrics: raw.metrics,
            adapters: raw.adapters,
            replicas: raw.replicas,
            wasi: raw.wasi,
        }
    }
}

/// TOML as JSON; dates become texts.
pub(crate) fn json(table: toml::Table) -> serde_json::Value {
    table.into_iter().map(|(key, value)| (key, json_value(value))).collect()
}

fn json_value(value: toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json_value).collect(),
        toml::Value::Table(table) => json(table),
    }
}
