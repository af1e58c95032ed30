//! How many blocks of the KV cache the devices of a group have room for.
//!
//! Before anything is loaded, every rank tells all others what its device has free, and each comes
//! to the same number from what all have told. So the ranks agree wherever they are: on one device,
//! on several, in other processes. What a rank takes besides is known from the model's shape, so
//! nothing has to be loaded to find out, and what does not fit is refused at once.

use collective::comm::Comm;
use contract::counts::Purpose;
use kernels::ops::{DeviceMemory, Ops, Precision};

use crate::blueprint::Blueprint;
use crate::error::{Error, Result};
use crate::footprint::Footprint;

const MIB: u64 = 1 << 20;

/// A tenth of a device is left alone: scratch that grows with batches, recorded graphs, libraries,
/// and what others on the device may want. vLLM keeps as much unless told otherwise.
const KEPT: u64 = 10;

/// Adapters keep no more than a quarter of what the model leaves. They are not bound to it: an
/// adapter takes what it finds, and is refused when there is nothing.
const ADAPTERS: u64 = 4;

/// Floats that a rank tells: as many as collectives move at once, or a multiple.
const TOLD: usize = 8;

/// How many blocks a KV cache gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// So many.
    Fixed(usize),
    /// As many as there is room for.
    Fitting {
        /// Enough for one sequence.
        least: usize,
        /// More would never be used.
        most: usize,
    },
}

/// Ranks of other replicas on the device of a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// They have taken what is theirs, but for adapters.
    pub earlier: usize,
    /// They have yet to come.
    pub later: usize,
}

/// How many blocks all ranks of the group have room for. All of them call it, on devices that hold
/// nothing of theirs yet.
pub fn blocks<O, C>(ops: &mut O, comm: &mut C, blueprint: &Blueprint<'_>) -> Result<usize>
where
    O: Ops,
    C: Comm<O>,
{
    let Some(memory) = ops.memory()? else {
        return match blueprint.blocks {
            Blocks::Fixed(blocks) => Ok(blocks),
            Blocks::Fitting { .. } => unreachable!("host memory is divided before: this is a bug"),
        };
    };
    let told = tell(ops, comm, Told::of(&memory, blueprint.neighbours))?;
    let footprint = Footprint::of(blueprint, comm.ranks(), O::LOGIT_ROWS);
    agree(&told, footprint, blueprint.blocks).map_err(|tight| {
        let own = told[tight.rank].identity == memory.identity;
        let device = if own { memory.device } else { format!("the device of rank {}", tight.rank) };
        Error::NoRoom(tight.refusal(&device, &footprint, blueprint.block_tokens))
    })
}

/// What a rank tells the others about its device; sizes in MiB, which floats hold exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Told {
    identity: u32,
    total: u64,
    free: u64,
    /// As [`Neighbours`] has it.
    earlier: u64,
    later: u64,
}

impl Told {
    fn of(memory: &DeviceMemory, neighbours: Neighbours) -> Self {
        let DeviceMemory { identity, total, free, .. } = *memory;
        let [earlier, later] = [neighbours.earlier, neighbours.later].map(|ranks| ranks as u64);
        Self { identity, total: total / MIB, free: free / MIB, earlier, later }
    }

    fn floats(&self) -> [f32; TOLD] {
        let Self { identity, total, free, earlier, later } = *self;
        let [total, free, earlier, later] = [total, free, earlier, later].map(|told| told as f32);
        [identity as f32, total, free, earlier, later, 0.0, 0.0, 0.0]
    }

    fn from(floats: &[f32]) -> Self {
        let [total, free, earlier, later] = [1, 2, 3, 4].map(|at| floats[at] as u64);
        Self { identity: floats[0] as u32, total, free, earlier, later }
    }
}

/// What all ranks tell, in order. Nobody has it before all have looked at their devices.
fn tell<O, C>(ops: &mut O, comm: &mut C, told: Told) -> Result<Vec<Told>>
where
    O: Ops,
    C: Comm<O>,
{
    let ranks = comm.ranks();
    let mut part = ops.buf(TOLD, Precision::Full)?;
    let mut whole = ops.buf(TOLD * ranks, Precision::Full)?;
    ops.write(&told.floats(), &mut part)?;
    comm.all_gather(&part, &mut whole, TOLD, Purpose::Base)?;
    let all = ops.read(&whole, TOLD * ranks)?;
    comm.settle(false)?;
    Ok(all.chunks_exact(TOLD).map(Told::from).collect())
}

/// The blocks that all ranks have room for, or the rank that has too little.
fn agree(told: &[Told], footprint: Footprint, blocks: Blocks) -> std::result::Result<usize, Tight> {
    let tight = (0..told.len()).map(|rank| Tight::of(rank, told, &footprint, blocks));
    let tight = tight.min_by_key(|tight| tight.room);
    let tight = tight.expect("a group has a rank: this is a bug");
    let fitting = tight.room.map_or(0, |room| room / footprint.block);
    let fitting = usize::try_from(fitting).unwrap_or(usize::MAX);
    match blocks {
        _ if tight.room.is_none() || fitting < tight.least => Err(tight),
        Blocks::Fixed(blocks) => Ok(blocks),
        Blocks::Fitting { most, .. } => Ok(fitting.min(most)),
    }
}

/// A rank and the memory that it may fill.
#[derive(Debug, PartialEq, Eq)]
struct Tight {
    rank: usize,
    /// Ranks on its device, those to come included.
    sharing: u64,
    /// Of the device, in MiB.
    total: u64,
    free: u64,
    /// Bytes for its cache; `None` if not even the model has room.
    room: Option<u64>,
    /// Blocks that it needs.
    least: usize,
    /// Whether a part of the device is kept, and adapters have theirs.
    kept: bool,
}

impl Tight {
    /// Every rank may fill an equal share of what its device has free. Where the size of the cache
    /// is left to us, a part is kept, and adapters have theirs; where it is not, it is tried.
    fn of(rank: usize, told: &[Told], footprint: &Footprint, blocks: Blocks) -> Self {
        let Told { identity, total, earlier, later, .. } = told[rank];
        let here = || told.iter().filter(|other| other.identity == identity);
        let free = here().map(|other| other.free).min().unwrap_or(0);
        let sharing = here().count() as u64 + later;
        let adapters = |left: u64| footprint.adapters.min(left / ADAPTERS);
        let theirs = earlier * adapters(MIB * total / (earlier + sharing));
        let beside = |kept| (MIB * free).saturating_sub(kept) / sharing;
        let (room, least, kept) = match blocks {
            Blocks::Fixed(blocks) => (beside(0).checked_sub(footprint.model), blocks, false),
            Blocks::Fitting { least, .. } => {
                let left = beside(MIB * total / KEPT + theirs).checked_sub(footprint.model);
                (left.map(|left| left - adapters(left)), least, true)
            }
        };
        Self { rank, sharing, total, free, room, least, kept }
    }

    fn refusal(&self, device: &str, footprint: &Footprint, block_tokens: usize) -> String {
        let Self { sharing, total, free, least, kept, .. } = *self;
        let (model, cache) = (gib(footprint.model), gib(least as u64 * footprint.block));
        let (total, free, tokens) = (gib(total * MIB), gib(free * MIB), least * block_tokens);
        let ranks = if sharing == 1 { "1 rank".to_owned() } else { format!("{sharing} ranks") };
        let fits = self.room.map_or(0, |room| room / footprint.block) * block_tokens as u64;
        let left = match self.room {
            None => "nothing is left for the cache".to_owned(),
            Some(room) => format!("{} are left for it, {fits} tokens", gib(room)),
        };
        let kept = if kept { " when a tenth of the device and adapters have theirs" } else { "" };
        format!(
            "{device} has {free} of {total} free for {ranks}; each needs {model} for weights and \
             activations and {cache} for a KV cache of {tokens} tokens, and {left}{kept}: a \
             smaller model.context_max, engine.kv_cache_gib or engine.batch_tokens_max, more ranks \
             (parallel.tensor), fewer on one device (parallel.devices) or a larger device would do"
        )
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests;
