//! What may run a request: the engines of this process, and upstream servers.

pub mod choose;
pub mod upstream;

use std::collections::BTreeSet;
use std::sync::Arc;

use config::settings;
use contract::policy::replica::{AdapterRow, Load, Replica as Columns, ReplicaRow};
use engine::handle::{Catalogue, Engine, Unavailable};
use engine::text::Text;
use prometheus_client::registry::Registry;

use crate::app::Replica;
use crate::metrics;
use crate::replicas::upstream::Upstream;

/// All replicas of a server, in their order: engines, which share a tokenizer and a catalogue, then
/// upstreams. Clones are the same.
#[derive(Clone)]
pub struct Replicas(Arc<Inner>);

struct Inner {
    engines: Vec<Engine>,
    /// One an engine.
    registries: Vec<Registry>,
    upstreams: Vec<Arc<Upstream>>,
    model_name: String,
}

/// What a request asks of the replica that runs it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The adapter; `None` is the base.
    pub adapter: Option<&'a str>,
    /// Its first prompt.
    pub prompt: &'a [u32],
    /// Its answer shows tokens, which only engines of this process tell.
    pub shows_tokens: bool,
}

impl Replicas {
    /// These engines, and upstreams, which are checked from now on; `None` without an engine. The
    /// base is called `model_name`. Call it within a runtime.
    pub fn new(
        locals: Vec<Replica>,
        upstreams: &[settings::Upstream],
        model_name: &str,
    ) -> Option<Self> {
        if locals.is_empty() {
            return None;
        }
        let (mut engines, mut registries) = (Vec::new(), Vec::new());
        for (number, mut local) in locals.into_iter().enumerate() {
            metrics::register(&mut local.registry, number, local.counts);
            engines.push(local.engine);
            registries.push(local.registry);
        }
        let upstreams: Vec<_> = upstreams.iter().map(|it| Arc::new(Upstream::new(it))).collect();
        upstreams.iter().for_each(Upstream::watch);
        let model_name = model_name.to_owned();
        Some(Self(Arc::new(Inner { engines, registries, upstreams, model_name })))
    }

    /// The engine that answers what all would answer alike.
    pub fn first(&self) -> &Engine {
        &self.0.engines[0]
    }

    /// The base's text side.
    pub fn text(&self) -> &Arc<Text> {
        self.first().text()
    }

    /// Adapters that can be asked for.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        self.first().catalogue()
    }

    /// Tells all engines to look at the catalogue again.
    pub fn catalogue_changed(&self) {
        self.0.engines.iter().for_each(Engine::catalogue_changed);
    }

    /// The base's name in the API.
    pub fn model_name(&self) -> &str {
        &self.0.model_name
    }

    /// Longest sequence in tokens that every replica can run.
    pub fn context_max(&self) -> usize {
        self.0.engines.iter().map(Engine::context_max).min().unwrap_or_default()
    }

    /// Whether some replica serves an adapter under `name`, or it was refused at start, which its
    /// engine tells.
    pub fn knows(&self, name: &str) -> bool {
        let catalogue = self.catalogue();
        !matches!(catalogue.get(name), Err(Unavailable::Unknown))
            || self.0.upstreams.iter().any(|upstream| upstream.serves(name))
    }

    /// Whether an adapter is served under `name`, here or by an upstream that is well.
    pub fn serves(&self, name: &str) -> bool {
        self.catalogue().get(name).is_ok()
            || self.0.upstreams.iter().any(|upstream| upstream.serves(name))
    }

    /// Names of the adapters that can be asked for: those of the catalogue, then those that only
    /// upstreams serve.
    pub fn adapter_names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.catalogue().entries().map(|entry| entry.name.clone()).collect();
        let there: BTreeSet<_> = self.0.upstreams.iter().flat_map(|it| it.adapters()).collect();
        let local: BTreeSet<_> = names.iter().cloned().collect();
        names.extend(there.difference(&local).cloned());
        names
    }

    /// Whether no replica can run anything any more.
    pub fn is_dead(&self) -> bool {
        self.0.engines.iter().all(Engine::is_dead)
            && !self.0.upstreams.iter().any(|upstream| upstream.is_healthy())
    }

    /// Takes nothing new from now on.
    pub fn drain(&self) {
        self.0.engines.iter().for_each(Engine::drain);
    }

    /// What is measured, an engine each.
    pub fn registries(&self) -> &[Registry] {
        &self.0.registries
    }

    /// How busy the engines that live are together.
    pub fn load(&self) -> Load {
        let (mut sum, mut blocks_used, mut blocks_total) = (Load::default(), 0, 0);
        for load in self.0.engines.iter().filter(|engine| !engine.is_dead()).map(Engine::load) {
            sum.running += load.running as u32;
            sum.waiting += load.waiting as u32;
            sum.queue_max += load.queue_max as u32;
            blocks_used += load.blocks_used;
            blocks_total += load.blocks_total;
        }
        Load { kv_used: blocks_used as f32 / blocks_total.max(1) as f32, ..sum }
    }

    /// The replicas that could run what is wanted: their places in the order, and their columns.
    pub fn candidates(&self, wanted: Wanted<'_>) -> (Vec<usize>, Vec<Columns>) {
        let known = |name| !matches!(self.catalogue().get(name), Err(Unavailable::Unknown));
        let here = wanted.adapter.is_none_or(known);
        let alive = |engine: &&Engine| here && !engine.is_dead() && !engine.is_draining();
        let local = |engine: &Engine| Some(engine).filter(alive).map(|it| columns(it, wanted));
        let engines = self.0.engines.iter().map(local);
        let upstream = |it: &Arc<Upstream>| it.columns(wanted).filter(|_| !wanted.shows_tokens);
        let all = engines.chain(self.0.upstreams.iter().map(upstream)).enumerate();
        all.filter_map(|(at, columns)| Some((at, columns?))).unzip()
    }

    fn member(&self, at: usize) -> Member<'_> {
        match self.0.engines.get(at) {
            Some(engine) => Member::Local(engine),
            None => Member::Upstream(&self.0.upstreams[at - self.0.engines.len()]),
        }
    }

    /// The name of a replica.
    pub fn name(&self, at: usize) -> String {
        match self.member(at) {
            Member::Local(_) => format!("local-{at}"),
            Member::Upstream(upstream) => upstream.name().to_owned(),
        }
    }

    /// Replicas as operators and policies see them.
    pub fn rows(&self) -> Vec<ReplicaRow> {
        let row = |(at, engine): (usize, &Engine)| {
            let load = engine.load();
            ReplicaRow {
                name: self.name(at),
                healthy: !engine.is_dead() && !engine.is_draining(),
                running: load.running as u32,
                waiting: load.waiting as u32,
            }
        };
        let engines = self.0.engines.iter().enumerate().map(row);
        engines.chain(self.0.upstreams.iter().map(|upstream| upstream.row())).collect()
    }

    /// Adapters as operators and policies see them, by name.
    pub fn adapters(&self) -> Vec<AdapterRow> {
        let resident = |name: &str| self.0.engines.iter().any(|engine| engine.is_resident(name));
        let entries = self.catalogue().entries();
        entries
            .map(|entry| AdapterRow {
                name: entry.name.clone(),
                lora_rank: entry.lora_rank as u32,
                resident: resident(&entry.name),
            })
            .collect()
    }
}

/// One replica.
enum Member<'a> {
    Local(&'a Engine),
    Upstream(&'a Arc<Upstream>),
}

fn columns(engine: &Engine, wanted: Wanted<'_>) -> Columns {
    let load = engine.load();
    Columns {
        running: load.running as u32,
        waiting: load.waiting as u32,
        kv_used: load.kv_used(),
        adapter_resident: wanted.adapter.is_none_or(|name| engine.is_resident(name)),
        prefix_hit: engine.prefix_hit(wanted.adapter, wanted.prompt),
        local: true,
    }
}
