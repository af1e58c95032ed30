//! A loaded adapter as the ranks see it: one local pair per rank and projection.
//!
//! Plain LoRA, rsLoRA and BD-LoRA differ on disk only. At load each becomes a [`LocalPair`] per
//! rank and projection, cut like the base layer it adds to, so the hot path knows no kinds. The
//! table in ARCHITECTURE.md ("BD-LoRA in one page") says which rows and columns go where.

use std::fmt;
use std::ops::Range;

use crate::base::Projection;

/// Device space of one generation; an index below the configured `slots_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names one immutable loaded version of an adapter: the SHA-256 of its config and weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId(pub [u8; 32]);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerationId({self})")
    }
}

/// What an adapter is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Dense factors.
    Plain,
    /// Block-diagonal factors with this many blocks (arXiv 2510.23346).
    BlockDiagonal {
        /// Number of blocks, fixed when the adapter was trained.
        blocks: usize,
    },
}

/// A collective that a local pair needs between shrink and expand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// None: the pair is cut like its base layer.
    None,
    /// S-LoRA, column-parallel: every rank shrinks to its part of the lora rank; all-gather.
    Gather,
    /// S-LoRA, row-parallel: every rank shrinks its part of the input; all-reduce.
    Reduce,
}

/// The dimensions of a local pair. `h = shrink(x)` has `shrink_rank` columns, and
/// `y[output] += expand(h)` reads `expand_rank` of them after the exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairShape {
    /// Input features that this rank holds.
    pub input: usize,
    /// Rows of the rank's output that the pair adds to.
    pub output: Range<usize>,
    /// Lora rank computed here by shrink.
    pub shrink_rank: usize,
    /// Lora rank read here by expand: `shrink_rank` times the ranks after a gather, else equal.
    pub expand_rank: usize,
    /// Diagonal blocks of A: row `j` reads inputs of block `j / (shrink_rank / a_blocks)` only.
    pub a_blocks: usize,
    /// Diagonal blocks of B: output `o` reads the lora ranks of block
    /// `o / (output.len() / b_blocks)` only.
    pub b_blocks: usize,
    /// What happens between shrink and expand.
    pub exchange: Exchange,
}

impl PairShape {
    /// Elements of the compact A, `[shrink_rank, input / a_blocks]`.
    pub fn a_len(&self) -> usize {
        self.shrink_rank * (self.input / self.a_blocks)
    }

    /// Elements of the compact B, `[output, expand_rank / b_blocks]`.
    pub fn b_len(&self) -> usize {
        self.output.len() * (self.expand_rank / self.b_blocks)
    }
}

/// The A and B that one rank holds for one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalPair {
    /// Dimensions of both factors.
    pub shape: PairShape,
    /// `[shrink_rank, input / a_blocks]`, row-major, blocks stacked on rows.
    pub a: Vec<f32>,
    /// `[output, expand_rank / b_blocks]`, row-major, blocks stacked on rows; the adapter's scaling
    /// is multiplied in.
    pub b: Vec<f32>,
}

/// The local pairs of one decoder block, by [`Projection::index`].
pub type LayerPairs = [Option<LocalPair>; Projection::ALL.len()];

/// One immutable loaded version of an adapter, cut for every rank of a group.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Content digest.
    pub id: GenerationId,
    /// The name it is served under.
    pub name: String,
    /// What it is on disk.
    pub kind: Kind,
    /// Largest full lora rank of any projection.
    pub lora_rank: usize,
    /// `[rank][layer]` local pairs.
    pub ranks: Vec<Vec<LayerPairs>>,
}

impl Generation {
    /// Host memory held by the factors, in bytes.
    pub fn bytes(&self) -> usize {
        let pairs = self.ranks.iter().flatten().flatten().flatten();
        pairs.map(|pair| (pair.a.len() + pair.b.len()) * size_of::<f32>()).sum()
    }
}
