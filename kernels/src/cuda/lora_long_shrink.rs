//! Launches `lora_long_shrink.cu`: shrink of long segments to few lora ranks.

use crate::error::Result;

use super::device::{Device, Grid, Kernel, in_launches, to_u32};
use super::program::Programs;

/// Some lora ranks of a segment, or of one of its diagonal blocks.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LongShrink {
    /// Address of `[ranks, inputs]`.
    pub a: u64,
    pub inputs: u32,
    pub ranks: u32,
    /// Where its inputs start in a row of x.
    pub column: u32,
    pub row: u32,
    pub rows: u32,
    /// Where its shrunk activations start, and how far apart their rows are.
    pub h: u32,
    pub width: u32,
    pub padding: u32,
}

const _: () = assert!(size_of::<LongShrink>() == 40);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraLongShrinkParams {
    x: u64,
    h: u64,
    width: u32,
    padding: u32,
    entries: [LongShrink; ENTRIES_MAX],
}

const _: () = assert!(size_of::<LoraLongShrinkParams>() == 1304);

/// Entries of a launch, at most.
const ENTRIES_MAX: usize = 32;

/// Lora ranks of an entry, at most: a block has registers for no more.
pub const RANKS_MAX: usize = 64;

/// Threads of a block, rows that it takes, and shared memory: 4 stages of 128 inputs.
const THREADS: u32 = 256;
const ROWS: usize = 64;
pub const SHARED_BYTES: usize = 4 * 128 * (ROWS + RANKS_MAX) * 2;

/// The kernel.
pub struct LoraLongShrink(Kernel<LoraLongShrinkParams>);

impl LoraLongShrink {
    /// `None` where it is not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let name = "lora_long_shrink";
        if programs.module(name).is_none() {
            return Ok(None);
        }
        Ok(Some(Self(Kernel::new(programs, name, name)?.allow_shared(SHARED_BYTES)?)))
    }

    /// `h = x A^T` of all entries, where x has rows of so many columns.
    pub fn launch(
        &self,
        device: &Device,
        (x, width): (u64, usize),
        h: u64,
        entries: &[LongShrink],
    ) -> Result<()> {
        in_launches(entries, |entries, some| {
            let params = LoraLongShrinkParams { x, h, width: to_u32(width), padding: 0, entries };
            let rows = some.iter().map(|entry| entry.rows as usize).max().unwrap_or(0);
            let grid = Grid::of_3((rows.div_ceil(ROWS), some.len(), 1), THREADS);
            device.launch(&self.0, grid.shared(SHARED_BYTES), &params)
        })
    }
}
