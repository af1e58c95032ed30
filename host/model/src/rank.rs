//! One rank: its part of the model, and the adapters that come and go.

use std::collections::{HashSet, VecDeque};

use collective::comm::Comm;
use contract::adapter::{Exchange, Generation, Slot};
use contract::tensor::DType;
use kernels::ops::{Ops, WeightView};

use crate::blueprint::Blueprint;
use crate::error::{Error, Result};
use crate::head::Head;
use crate::hf::ModelConfig;
use crate::layer::Layer;
use crate::loader::Loader;
use crate::lora::Shrunk;
use crate::pass::{Activations, Widths};
use crate::room;
use crate::step::Started;
use crate::vocabulary::Vocabulary;

/// One rank: its shards of the model, its heads' KV cache, its adapters' local pairs.
pub struct Rank<O: Ops, C: Comm<O>> {
    pub(crate) ops: O,
    pub(crate) comm: C,
    pub(crate) vocabulary: Vocabulary<O>,
    pub(crate) layers: Vec<Layer<O>>,
    pub(crate) head: Head<O>,
    pub(crate) rope: O::Weight,
    pub(crate) activations: Activations<O>,
    pub(crate) shrunk: Shrunk<O>,
    /// Rows that the activations have room for.
    pub(crate) rows_max: usize,
    blocks: usize,
    /// Slots whose adapters need collectives of their own.
    pub(crate) exchanging: HashSet<Slot>,
    /// Steps that were launched and whose answers nobody took yet, the oldest first.
    pub(crate) started: VecDeque<Started<O::Step>>,
    /// Tokens of the last answers that the host found.
    pub(crate) drawn: Vec<u32>,
}

impl<O: Ops, C: Comm<O>> Rank<O, C> {
    /// Loads this rank's part of the model.
    pub fn build(mut ops: O, mut comm: C, blueprint: Blueprint<'_>) -> Result<Self> {
        let (rank, ranks) = (comm.rank(), comm.ranks());
        let blocks = room::blocks(&mut ops, &mut comm, &blueprint)?;
        blueprint.progress.begin();
        let mut loader = Loader { ops: &mut ops, rank, ranks, blocks, blueprint };
        let vocabulary = Vocabulary::load(&mut loader)?;
        let layers = 0..blueprint.config.shape.layers;
        let layers = layers.map(|layer| Layer::load(&mut loader, layer)).collect::<Result<_>>()?;
        let head = Head::load(&mut loader, vocabulary.cut.width)?;
        let rope = rope_table(&mut ops, blueprint)?;
        let widths = widths(blueprint.config, rank, ranks);
        let activations = Activations::new(&mut ops, blueprint.rows_max, widths)?;
        let shrunk = Shrunk::new(&mut ops, blueprint.rows_max)?;
        let rows_max = blueprint.rows_max;
        let exchanging = HashSet::new();
        Ok(Self {
            ops,
            comm,
            vocabulary,
            layers,
            head,
            rope,
            activations,
            shrunk,
            rows_max,
            blocks,
            exchanging,
            started: VecDeque::new(),
            drawn: Vec::new(),
        })
    }

    /// Blocks of the KV cache, the same on all ranks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Puts this rank's local pairs into `slot`. After an error the slot is empty.
    pub fn load(&mut self, slot: Slot, generation: &Generation) -> Result<()> {
        let loaded = self.try_load(slot, generation);
        if loaded.is_err() {
            self.unload(slot);
        }
        loaded
    }

    fn try_load(&mut self, slot: Slot, generation: &Generation) -> Result<()> {
        let (rank, ranks) = (self.comm.rank(), self.comm.ranks());
        fits(generation, ranks, self.layers.len())?;
        if exchanges(generation, rank) {
            self.exchanging.insert(slot);
        } else {
            self.exchanging.remove(&slot);
        }
        for (layer, pairs) in self.layers.iter_mut().zip(&generation.ranks[rank]) {
            for site in layer.sites() {
                self.shrunk.reserve(&mut self.ops, site.widths(pairs), ranks)?;
                site.load(&mut self.ops, slot, pairs)?;
            }
        }
        Ok(())
    }

    /// Empties `slot`.
    pub fn unload(&mut self, slot: Slot) {
        let sites = self.layers.iter_mut().flat_map(Layer::sites);
        sites.for_each(|site| site.unload(&mut self.ops, slot));
        self.exchanging.remove(&slot);
    }
}

fn fits(generation: &Generation, ranks: usize, layers: usize) -> Result<()> {
    let cut = (generation.ranks.len(), generation.ranks.first().map_or(0, Vec::len));
    if cut == (ranks, layers) {
        return Ok(());
    }
    Err(Error::Generation(format!(
        "adapter {:?} is cut for {} ranks and {} layers; this group has {ranks} and {layers}",
        generation.name, cut.0, cut.1
    )))
}

/// Whether a rank's pairs need a collective between shrink and expand.
fn exchanges(generation: &Generation, rank: usize) -> bool {
    let mut pairs = generation.ranks[rank].iter().flatten().flatten();
    pairs.any(|pair| pair.shape.exchange != Exchange::None)
}

/// Widths of one rank's activations.
pub fn widths(config: &ModelConfig, rank: usize, ranks: usize) -> Widths {
    let shape = &config.shape;
    let queries = shape.heads / ranks * shape.head_dim;
    let keys = shape.kv_heads_of(rank, ranks).len() * shape.head_dim;
    let features = shape.intermediate / ranks;
    Widths {
        hidden: shape.hidden,
        fused: (queries + 2 * keys).max(2 * features),
        inner: queries.max(features),
    }
}

fn rope_table<O: Ops>(ops: &mut O, blueprint: Blueprint<'_>) -> Result<O::Weight> {
    let dim = blueprint.config.shape.head_dim;
    let table = blueprint.config.rope.table(dim, blueprint.positions_max);
    let bytes: Vec<u8> = table.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (rows, dtype) = (blueprint.positions_max, DType::F32);
    Ok(ops.weight(&[WeightView { dtype, rows, cols: dim, stride: dim, bytes: &bytes }], dtype)?)
}
