//! What may run a request: the engines of this process.

pub mod choose;

use std::sync::Arc;

use contract::policy::replica::{AdapterRow, Load, Replica as Columns, ReplicaRow};
use engine::handle::{Catalogue, Engine};
use engine::text::Text;
use prometheus_client::registry::Registry;

use crate::app::Replica;
use crate::metrics;

/// All replicas of a server, in their order. They have one tokenizer and one catalogue. Clones are
/// the same.
#[derive(Clone)]
pub struct Replicas(Arc<Inner>);

struct Inner {
    engines: Vec<Engine>,
    /// One an engine.
    registries: Vec<Registry>,
}

/// What a request asks of the replica that runs it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The adapter; `None` is the base.
    pub adapter: Option<&'a str>,
    /// Its first prompt.
    pub prompt: &'a [u32],
}

impl Replicas {
    /// These engines; `None` if there are none.
    pub fn new(locals: Vec<Replica>) -> Option<Self> {
        if locals.is_empty() {
            return None;
        }
        let (mut engines, mut registries) = (Vec::new(), Vec::new());
        for (number, mut local) in locals.into_iter().enumerate() {
            metrics::register(&mut local.registry, number, local.counts);
            engines.push(local.engine);
            registries.push(local.registry);
        }
        Some(Self(Arc::new(Inner { engines, registries })))
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

    /// Longest sequence in tokens that every replica can run.
    pub fn context_max(&self) -> usize {
        self.0.engines.iter().map(Engine::context_max).min().unwrap_or_default()
    }

    /// Whether an adapter is served under `name`, or was refused at start, which its engine tells.
    pub fn knows(&self, name: &str) -> bool {
        let catalogue = self.catalogue();
        catalogue.get(name).is_ok() || catalogue.refused().any(|refused| refused.name == name)
    }

    /// Whether no replica can run anything any more.
    pub fn is_dead(&self) -> bool {
        self.0.engines.iter().all(Engine::is_dead)
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
        let engines = self.0.engines.iter().enumerate();
        let alive = engines.filter(|(_, engine)| !engine.is_dead());
        alive.map(|(at, engine)| (at, columns(engine, wanted))).unzip()
    }

    /// The name of a replica.
    pub fn name(&self, at: usize) -> String {
        format!("local-{at}")
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
        self.0.engines.iter().enumerate().map(row).collect()
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

    fn engine(&self, at: usize) -> &Engine {
        &self.0.engines[at]
    }
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
