//! Launches `lora_long_expand.cu`: expand of long segments, of lora ranks that there is room for.

use crate::error::Result;

use super::device::{Device, Grid, Kernel, in_launches, to_u32};
use super::program::{Programs, SHARED_BYTES_ANYWHERE};

/// B of a pair, or of one of its diagonal blocks.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LongPair {
    /// Address of `[columns, rank]`.
    pub b: u64,
    pub rank: u32,
    /// Column of the shrunk activations.
    pub h: u32,
}

/// Columns of y that one pair adds to, in a segment.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LongExpand {
    pub pair: LongPair,
    pub column: u32,
    pub columns: u32,
    pub row: u32,
    pub rows: u32,
    /// Where the segment's shrunk activations start, and how far apart their rows are.
    pub h: u32,
    pub width: u32,
}

const _: () = assert!(size_of::<LongExpand>() == 40);

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraLongExpandParams {
    h: u64,
    y: u64,
    width: u32,
    padding: u32,
    entries: [LongExpand; ENTRIES_MAX],
}

const _: () = assert!(size_of::<LoraLongExpandParams>() == 1304);

/// Entries of a launch, at most.
const ENTRIES_MAX: usize = 32;

/// Lora rank of a pair, at most: shared memory has room for no more.
pub const RANKS_MAX: usize = 64;

/// Threads of a block, and what it takes: rows, and tiles of columns.
pub const THREADS: u32 = 256;
pub const ROWS: usize = 128;
pub const COLUMNS: usize = 64;
const TILES: usize = 8;

/// Bytes of both factors in shared memory: two tiles of B, in rows padded by 16 bytes.
const SHARED_BYTES: usize = (ROWS + 2 * COLUMNS) * (RANKS_MAX + 8) * 2;

const _: () = assert!(SHARED_BYTES <= SHARED_BYTES_ANYWHERE);

/// The kernel.
pub struct LoraLongExpand(Kernel<LoraLongExpandParams>);

impl LoraLongExpand {
    /// `None` where it is not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let name = "lora_long_expand";
        if programs.module(name).is_none() {
            return Ok(None);
        }
        Ok(Some(Self(Kernel::new(programs, name, name)?.allow_shared(SHARED_BYTES)?)))
    }

    /// `y += h B^T` of all entries, where y has rows of so many columns.
    pub fn launch(
        &self,
        device: &Device,
        h: u64,
        (y, width): (u64, usize),
        entries: &[LongExpand],
    ) -> Result<()> {
        in_launches(entries, |entries, some| {
            let params = LoraLongExpandParams { h, y, width: to_u32(width), padding: 0, entries };
            let most = |of: fn(&LongExpand) -> u32| some.iter().map(of).max().unwrap_or(0);
            let (columns, rows) = (most(|it| it.columns) as usize, most(|it| it.rows) as usize);
            let blocks = (columns.div_ceil(COLUMNS * TILES), rows.div_ceil(ROWS), some.len());
            device.launch(&self.0, Grid::of_3(blocks, THREADS).shared(SHARED_BYTES), &params)
        })
    }
}
