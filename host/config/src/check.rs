//! Turns what was typed into checked settings, or into a list of all that is wrong.

mod policy;

pub(crate) use policy::json;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::tensor::DType;

use crate::keys;
use crate::raw;
use crate::settings::{
    Adapters, Backend, CommKind, Engine, Load, Model, NamedAdapter, Parallel, PlainSharding,
    Server, Settings,
};

const GIB: f64 = (1u64 << 30) as f64;

/// One wrong value: its key, the value, and what would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted key.
    pub key: String,
    /// What was typed.
    pub value: String,
    /// What is wrong with it and what would do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.key, self.value, self.remedy)
    }
}

/// Checks every section before it gives up, so that one run shows all there is to mend.
pub fn check(raw: raw::Deployment, folder: &Path) -> Result<Settings, Vec<Problem>> {
    let mut checker = Checker { folder, problems: Vec::new() };
    let settings = Settings {
        server: checker.server(raw.server),
        model: checker.model(raw.model),
        parallel: checker.parallel(raw.parallel),
        engine: checker.engine(raw.engine),
        adapters: checker.adapters(raw.adapters, raw.adapter),
        policy: checker.policy(raw.policy, raw.plugin),
        upstreams: checker.upstreams(raw.upstream),
    };
    if checker.problems.is_empty() { Ok(settings) } else { Err(checker.problems) }
}

struct Checker<'a> {
    folder: &'a Path,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn server(&mut self, raw: raw::Server) -> Server {
        let listen = raw.listen.parse::<SocketAddr>().unwrap_or_else(|_| {
            self.wrong("server.listen", &raw.listen, "not an address; 127.0.0.1:8080 would do");
            SocketAddr::from(([127, 0, 0, 1], 0))
        });
        if raw.api_keys_file.is_none() && !listen.ip().is_loopback() {
            let remedy = "open to the network without keys; set server.api_keys_file, \
                          or listen on 127.0.0.1";
            self.wrong("server.listen", &raw.listen, remedy);
        }
        self.positive("server.body_mib_max", raw.body_mib_max);
        self.positive("server.request_timeout_s", raw.request_timeout_s as usize);
        Server {
            listen,
            api_keys: self.keys("server.api_keys_file", raw.api_keys_file),
            admin_keys: self.keys("server.admin_keys_file", raw.admin_keys_file),
            drain: Duration::from_secs(raw.drain_s),
            body_bytes_max: raw.body_mib_max << 20,
            request_timeout: Duration::from_secs(raw.request_timeout_s),
        }
    }

    fn keys(&mut self, key: &str, file: Option<PathBuf>) -> Vec<crate::settings::ApiKey> {
        let Some(file) = file else { return Vec::new() };
        keys::read(&self.folder.join(&file)).unwrap_or_else(|why| {
            self.wrong(key, file.display(), &why);
            Vec::new()
        })
    }

    fn model(&mut self, raw: raw::Model) -> Model {
        let path = self.folder.join(&raw.path);
        if !path.join("config.json").is_file() {
            let remedy = format!(
                "no config.json in {}; a Hugging Face model folder would do (relative paths \
                 start at the folder of this file)",
                path.display()
            );
            self.wrong("model.path", raw.path.display(), &remedy);
        }
        let name = raw.name.unwrap_or_else(|| folder_name(&path));
        let dtypes = [("bf16", DType::Bf16), ("f16", DType::F16), ("f32", DType::F32)];
        let loads = [("weights", Load::Weights), ("dummy", Load::Dummy { seed: raw.seed })];
        if let Some(tokens) = raw.context_max {
            self.positive("model.context_max", tokens);
        }
        Model {
            path,
            name,
            dtype: raw.dtype.map(|dtype| self.one_of("model.dtype", &dtype, &dtypes)),
            load: self.one_of("model.load", &raw.load, &loads),
            context_max: raw.context_max,
        }
    }

    fn parallel(&mut self, raw: raw::Parallel) -> Parallel {
        if !matches!(raw.tensor, 1 | 2 | 4 | 8) {
            self.wrong("parallel.tensor", raw.tensor, "1, 2, 4 or 8 would do");
        }
        self.positive("parallel.replicas", raw.replicas);
        if let Some(threads) = raw.threads {
            self.positive("parallel.threads", threads);
        }
        let ranks = raw.tensor.saturating_mul(raw.replicas);
        if !raw.devices.is_empty() && raw.devices.len() != ranks {
            let remedy = match raw.replicas {
                1 => format!("parallel.tensor = {} needs as many devices", raw.tensor),
                _ => format!("parallel.tensor * parallel.replicas = {ranks} devices would do"),
            };
            self.wrong("parallel.devices", format!("{:?}", raw.devices), &remedy);
        }
        let backends = [("auto", Backend::Auto), ("cpu", Backend::Cpu), ("cuda", Backend::Cuda)];
        let comms = [
            ("auto", CommKind::Auto),
            ("threads", CommKind::Threads),
            ("peer", CommKind::Peer),
            ("nccl", CommKind::Nccl),
        ];
        let backend = self.one_of("parallel.backend", &raw.backend, &backends);
        let comm = self.one_of("parallel.comm", &raw.comm, &comms);
        if backend == Backend::Cpu && matches!(comm, CommKind::Peer | CommKind::Nccl) {
            self.wrong("parallel.comm", &raw.comm, "needs backend = \"cuda\"; threads would do");
        }
        Parallel {
            backend,
            tensor: raw.tensor,
            replicas: raw.replicas,
            threads: raw.threads,
            comm,
            devices: raw.devices,
        }
    }

    fn engine(&mut self, raw: raw::Engine) -> Engine {
        for (key, value) in [
            ("engine.block_tokens", raw.block_tokens),
            ("engine.batch_tokens_max", raw.batch_tokens_max),
            ("engine.sequences_max", raw.sequences_max),
            ("engine.queue_max", raw.queue_max),
        ] {
            self.positive(key, value);
        }
        if raw.batch_tokens_max < raw.sequences_max {
            let remedy = format!(
                "every running sequence needs a row: at least engine.sequences_max = {}",
                raw.sequences_max
            );
            self.wrong("engine.batch_tokens_max", raw.batch_tokens_max, &remedy);
        }
        Engine {
            kv_cache_bytes: self.gib_or_auto("engine.kv_cache_gib", &raw.kv_cache_gib),
            block_tokens: raw.block_tokens,
            batch_tokens_max: raw.batch_tokens_max,
            sequences_max: raw.sequences_max,
            queue_max: raw.queue_max,
            prefix_cache: raw.prefix_cache,
        }
    }

    fn adapters(&mut self, raw: raw::Adapters, named: Vec<raw::Adapter>) -> Adapters {
        let dir = self.folder("adapters.dir", raw.dir);
        let resolve_root = self.folder("adapters.resolve_root", raw.resolve_root);
        self.positive("adapters.slots_max", raw.slots_max);
        let pinned = named.iter().filter(|adapter| adapter.pinned).count();
        if pinned > raw.slots_max {
            let remedy = format!("{pinned} pinned adapters need as many slots");
            self.wrong("adapters.slots_max", raw.slots_max, &remedy);
        }
        let shardings = [
            ("replicated", PlainSharding::Replicated),
            ("fully-sharded", PlainSharding::FullySharded),
        ];
        Adapters {
            dir,
            named: named.into_iter().map(|adapter| self.named(adapter)).collect(),
            resolve_root,
            slots_max: raw.slots_max,
            host_bytes: self.gib("adapters.host_gib", raw.host_gib),
            plain_sharding: self.one_of("adapters.plain_sharding", &raw.plain_sharding, &shardings),
        }
    }

    fn named(&mut self, raw: raw::Adapter) -> NamedAdapter {
        let path = self.folder.join(&raw.path);
        if !path.join("adapter_config.json").is_file() {
            let remedy = format!("no adapter_config.json in {}", path.display());
            self.wrong("adapter.path", raw.path.display(), &remedy);
        }
        NamedAdapter { name: raw.name, path, pinned: raw.pinned }
    }

    fn folder(&mut self, key: &str, folder: Option<PathBuf>) -> Option<PathBuf> {
        let folder = folder?;
        let path = self.folder.join(&folder);
        if !path.is_dir() {
            let remedy = format!("{} is not a folder", path.display());
            self.wrong(key, folder.display(), &remedy);
        }
        Some(path)
    }

    fn gib(&mut self, key: &str, gib: f64) -> u64 {
        if !is_size(gib) {
            self.wrong(key, gib, "a number of GiB above 0 would do");
        }
        (gib * GIB) as u64
    }

    /// `None` is `"auto"`.
    fn gib_or_auto(&mut self, key: &str, size: &raw::Gib) -> Option<u64> {
        const REMEDY: &str = "a number of GiB above 0, or \"auto\" would do";
        match size {
            raw::Gib::Number(gib) if is_size(*gib) => return Some((gib * GIB) as u64),
            raw::Gib::Number(gib) => self.wrong(key, gib, REMEDY),
            raw::Gib::Word(word) if word == "auto" => {}
            raw::Gib::Word(word) => self.wrong(key, format!("\"{word}\""), REMEDY),
        }
        None
    }

    fn positive(&mut self, key: &str, value: usize) {
        if value == 0 {
            self.wrong(key, value, "1 or more would do");
        }
    }

    fn one_of<T: Copy>(&mut self, key: &str, value: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, found)) = choices.iter().find(|(name, _)| *name == value) {
            return *found;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.wrong(key, format!("\"{value}\""), &format!("one of {} would do", names.join(", ")));
        choices[0].1
    }

    fn wrong(&mut self, key: &str, value: impl fmt::Display, remedy: &str) {
        let (key, value) = (key.to_owned(), value.to_string());
        self.problems.push(Problem { key, value, remedy: remedy.to_owned() });
    }
}

/// Whether a server may have so many GiB.
fn is_size(gib: f64) -> bool {
    gib > 0.0 && gib < 1e6
}

fn folder_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "base".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Gib;

    /// The messages for a deployment whose model folder exists.
    fn messages(extra: &str) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("tiny")).unwrap();
        std::fs::write(folder.path().join("tiny/config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("short.toml"), "[[key]]\ntenant='a'\nkey='sk-1'")
            .unwrap();
        let text = format!("model = {{ path = \"tiny\" }}\n{extra}");
        match crate::parse(&text, folder.path(), "test.toml") {
            Ok(_) => Vec::new(),
            Err(crate::ConfigError::Values { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            Err(error) => vec![error.to_string()],
        }
    }

    #[test]
    fn a_model_alone_is_enough() {
        assert_eq!(messages(""), [""; 0]);
    }

    #[test]
    fn a_kv_cache_has_a_size_or_what_there_is_room_for() {
        let bytes = |typed: &str| {
            let size = typed.parse().map_or_else(|_| Gib::Word(typed.to_owned()), Gib::Number);
            let mut checker = Checker { folder: Path::new(""), problems: Vec::new() };
            checker.gib_or_auto("engine.kv_cache_gib", &size)
        };
        assert_eq!(bytes("0.5"), Some(1 << 29));
        assert_eq!(bytes("auto"), None);
    }

    #[test]
    fn every_wrong_value_names_its_key_the_value_and_what_would_do() {
        for (extra, expected) in [
            ("[parallel]\ntensor = 3", "parallel.tensor = 3: 1, 2, 4 or 8 would do"),
            ("[parallel]\nbackend = \"gpu\"", "parallel.backend = \"gpu\": one of \"auto\""),
            ("[parallel]\ndevices = [0]\ntensor = 2", "parallel.devices = [0]: parallel.tensor"),
            ("[parallel]\nbackend = \"cpu\"\ncomm = \"nccl\"", "parallel.comm = nccl: needs"),
            ("[server]\nlisten = \"0.0.0.0:80\"", "server.listen = 0.0.0.0:80: open to the"),
            ("[server]\nlisten = \"here\"", "server.listen = here: not an address"),
            (
                "[server]\napi_keys_file = \"none.toml\"",
                "server.api_keys_file = none.toml: No such",
            ),
            ("[engine]\nkv_cache_gib = -1", "engine.kv_cache_gib = -1: a number of GiB"),
            ("[engine]\nkv_cache_gib = 0", "engine.kv_cache_gib = 0: a number of GiB above 0, or"),
            ("[engine]\nkv_cache_gib = \"lots\"", "engine.kv_cache_gib = \"lots\": a number of"),
            ("[engine]\nkv_cache_gib = [1]", "a number of GiB or \"auto\" would do"),
            ("[adapters]\nhost_gib = 0", "adapters.host_gib = 0: a number of GiB above 0"),
            ("[engine]\nbatch_tokens_max = 8", "engine.batch_tokens_max = 8: every running"),
            ("[adapters]\ndir = \"none\"", "adapters.dir = none: "),
            ("[adapters]\nplain_sharding = \"half\"", "one of \"replicated\", \"fully-sharded\""),
            ("[[adapter]]\nname = \"a\"\npath = \"none\"", "adapter.path = none: no adapter_conf"),
        ] {
            let found = messages(extra);
            assert!(found.iter().any(|line| line.contains(expected)), "{extra}: {found:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_shown_with_its_line_and_the_known_ones() {
        let found = messages("[engine]\nblock_tokns = 16").join("\n");
        assert!(found.contains("block_tokns") && found.contains("block_tokens"), "{found}");
    }

    #[test]
    fn a_short_key_is_refused_without_showing_it() {
        let found = messages("[server]\napi_keys_file = \"short.toml\"").join("\n");
        assert!(found.contains("shorter than 16") && !found.contains("sk-1"), "{found}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        assert_eq!(messages("[parallel]\ntensor = 3\n[engine]\nqueue_max = 0").len(), 2);
    }
}
