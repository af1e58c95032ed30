//! Adapter work at one site: the shapes that [`crate::ops::Ops`] speaks about.
//!
//! A *site* is a place in one layer where adapters add to linear layers that read the same input:
//! q, k and v; o; gate and up; down. It has a fixed number of slots; a slot holds at most one local
//! pair per target. Shrunk activations are ragged: row after row, target after target, each as wide
//! as its pair's true lora rank, so nothing is padded in memory or in arithmetic.

use contract::adapter::{LocalPair, Slot};

/// Dimensions of a site.
#[derive(Clone, Debug)]
pub struct SiteShape {
    /// Width of the input that this rank holds.
    pub input: usize,
    /// Output columns of each target, side by side in the output row.
    pub targets: Vec<usize>,
    /// Slots.
    pub slots: usize,
}

impl SiteShape {
    /// Width of an output row.
    pub fn output(&self) -> usize {
        self.targets.iter().sum()
    }
}

/// What goes into one slot of a site: a pair, or nothing, for each target.
pub struct SlotPairs<'a> {
    /// Which slot.
    pub slot: Slot,
    /// One a target.
    pub pairs: Vec<Option<&'a LocalPair>>,
}
