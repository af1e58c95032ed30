//! Launches `lora_decode_shrink.cu`, `lora_decode_expand.cu` and `lora_decode_gated.cu`: steps that
//! graphs serve.
//!
//! A launch is sized by what is loaded at the site, not by what the batch names, so that it can be
//! recorded once for every mix of adapters.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::error::Result;
use crate::lora::SiteShape;

use super::beside::SEGMENTS_MAX;
use super::device::{Device, Grid, Kernel, to_u32};
use super::gemm_stream::{GemmStream, ROWS_ANY};
use super::lora::{PairEntry, Site, TARGETS_MAX};
use super::lora_rows::COLUMNS;
use super::memory::{Buf, Memory};
use super::program::{Programs, SHARED_BYTES_ANYWHERE};
use super::step::{Listed, Step};
use super::upload::{Plain, Upload, bytes_of};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraDecodeParams {
    shrink: u64,
    pairs: u64,
    segments: u64,
    segment_count: u64,
    x: u64,
    y: u64,
    out: u64,
    h: u64,
    told: u64,
    rows: u32,
    width: u32,
    h_stride: u32,
    splits: u32,
    shrink_tiles: u32,
    targets: u32,
    columns: u32,
    staged: u32,
    tile_end: [u32; TARGETS_MAX],
    target_column: [u32; TARGETS_MAX],
}

const _: () = assert!(size_of::<LoraDecodeParams>() == 168);

/// Up to [`TILE_RANKS`] rows of one A, as the kernel finds them; `rows` is 0 where there are none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ShrinkTile {
    a: u64,
    inputs: u32,
    input: u32,
    h: u32,
    rows: u32,
    padding: [u32; 2],
}

const _: () = assert!(size_of::<ShrinkTile>() == 32);

// SAFETY: a field of 8 bytes and six of 4 fill its 32 bytes.
unsafe impl Plain for ShrinkTile {}

/// Lora ranks of a tile of shrink.
const TILE_RANKS: u32 = 8;

/// Output columns of a tile of expand, as the launch chooses, of one of both parts where it is
/// gated, and what a tile costs besides, in bytes that a block could have read.
const TILE_COLUMNS: [usize; 3] = [256, 512, 1024];
const GATED_COLUMNS: [usize; 3] = [128, 256, 512];
const TILE_COST: usize = 8 << 10;

/// Bytes of an element: the kernels take no other.
const SIXTEEN_BITS: u64 = 2;

/// Threads of a block, and blocks of shrink and of expand that share a multiprocessor.
const THREADS: u32 = 256;
const SHRINK_BLOCKS: usize = 3;
const EXPAND_BLOCKS: usize = 4;

/// Pieces of [`ON_THEIR_WAY`] inputs a multiprocessor from which on shrink takes all of it, though
/// a product has room beside one block: the product then starts once blocks of shrink are done.
const ALONE_MIN: usize = 6;

/// Rows of a segment, at most.
pub const ROWS: usize = 8;

/// Lora ranks of one pair that expand has room for, as it stages them ([`PairEntry::staged`]).
pub const STAGED_MAX: usize = 1536;

/// Elements that part the banks of neighbouring rows.
const GAP: usize = 8;

/// Shared memory of expand, at most.
const EXPAND_BYTES_MAX: usize = expand_shared_bytes(STAGED_MAX, TILE_COLUMNS[2]);
const GATED_BYTES_MAX: usize = 2 * expand_shared_bytes(STAGED_MAX, GATED_COLUMNS[2]);

const _: () =
    assert!(EXPAND_BYTES_MAX <= SHARED_BYTES_ANYWHERE && GATED_BYTES_MAX <= SHARED_BYTES_ANYWHERE);

/// Inputs that shrink's warps have on their way at once, of one piece; parts that the inputs are
/// cut into, at most; and what a piece costs besides, in per cent of bringing that many.
const ON_THEIR_WAY: usize = 1024;
pub const SPLITS_MAX: usize = 16;
const PIECE_COST: usize = 60;

/// Shrunk activations of a row are that many, or a multiple: 16 bytes of them once rounded.
const H_ALIGNMENT: usize = 8;

/// The kernels.
pub struct LoraDecode {
    shrink: Kernel<LoraDecodeParams>,
    /// One block a multiprocessor, for products that start beside it.
    shrink_beside: Kernel<LoraDecodeParams>,
    expand: Kernel<LoraDecodeParams>,
    gated: Kernel<LoraDecodeParams>,
}

impl LoraDecode {
    /// `None` where they are not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let [shrink, expand, gated] =
            ["lora_decode_shrink", "lora_decode_expand", "lora_decode_gated"];
        if programs.module(shrink).is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            shrink: Kernel::new(programs, shrink, shrink)?,
            shrink_beside: Kernel::new(programs, shrink, "lora_decode_shrink_beside")?
                .prefer_shared()?,
            expand: Kernel::new(programs, expand, expand)?.allow_shared(EXPAND_BYTES_MAX)?,
            gated: Kernel::new(programs, gated, gated)?.allow_shared(GATED_BYTES_MAX)?,
        }))
    }
}

/// What decode needs to know about a site besides its pairs.
pub struct DecodeTable {
    /// `[slots, tiles]` of [`ShrinkTile`].
    device: Memory,
    slots: Vec<Vec<ShrinkTile>>,
    /// Tiles of the slot that has the most, of all that were ever loaded.
    tiles: usize,
    /// Shrunk columns of a row, likewise: no more than [`crate::ops::Ops::shrunk_rows`] counts on.
    h_stride: usize,
    /// What expand stages of a row, likewise.
    staged: usize,
    /// Inputs of the site, and multiprocessors.
    inputs: usize,
    processors: usize,
    /// Rows of few segments up to which products leave room for shrink.
    beside_rows: usize,
    /// Whether all pairs ever loaded are cut as `lora_rows.cu` needs it.
    pub even: bool,
    /// Whether they are cut as `adapters.cuh` needs it.
    pub copied: bool,
}

impl DecodeTable {
    pub fn new(device: &Device, shape: &SiteShape) -> Result<Self> {
        Ok(Self {
            device: Memory::zeroed(&device.stream, 0, "a table of adapters")?,
            slots: vec![Vec::new(); shape.slots],
            tiles: 0,
            h_stride: 0,
            staged: 0,
            inputs: shape.input,
            processors: device.processors,
            beside_rows: device.kernels.gemm_stream.as_ref().map_or(0, GemmStream::beside_rows),
            copied: true,
            even: shape.input.is_multiple_of(8) && shape.output().is_multiple_of(COLUMNS),
        })
    }

    /// Where the tiles of all slots lie.
    pub fn address(&self) -> u64 {
        self.device.address()
    }

    /// Tiles of a slot.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// Lora ranks of the largest pair, as expand stages them.
    pub fn staged(&self) -> usize {
        self.staged
    }

    /// Floats from a row's shrunk activations to the next one's.
    pub fn h_stride(&self) -> usize {
        self.h_stride
    }

    /// Parts that shrink cuts the inputs into in a step of so many rows.
    pub fn splits(&self, rows: usize) -> usize {
        splits(self.inputs, self.segments(rows) * self.tiles, self.blocks(rows))
    }

    /// Whether a product of so many rows starts beside shrink, not behind it.
    pub fn beside(&self, rows: usize) -> bool {
        rows <= ROWS_ANY || rows <= self.beside_rows && self.segments(rows) <= SEGMENTS_MAX
    }

    /// Blocks of shrink in a step of so many rows: one a multiprocessor where a product may be
    /// beside it, unless those would have too much to do.
    fn blocks(&self, rows: usize) -> usize {
        let pieces = self.segments(rows) * self.tiles * splits_most(self.inputs);
        let much = pieces >= ALONE_MIN * self.processors;
        self.processors * if self.beside(rows) && !much { 1 } else { SHRINK_BLOCKS }
    }

    /// Takes note of what lies in a slot. True if launches recorded before no longer serve.
    pub fn enter(
        &mut self,
        upload: &mut Upload,
        stream: &Arc<CudaStream>,
        slot: usize,
        (pairs, input): (&[PairEntry], usize),
    ) -> Result<bool> {
        let mut tiles = Vec::new();
        self.even &= pairs.iter().all(PairEntry::is_even);
        self.copied &= pairs.iter().all(PairEntry::is_copied);
        pairs.iter().for_each(|pair| add_tiles(pair, input, &mut tiles));
        let columns = tiles.iter().map(|tile| (tile.h + tile.rows) as usize).max().unwrap_or(0);
        let columns = columns.next_multiple_of(H_ALIGNMENT);
        let staged = pairs.iter().map(PairEntry::staged).max().unwrap_or(0);
        let grows = tiles.len() > self.tiles || columns > self.h_stride || staged > self.staged;
        self.h_stride = self.h_stride.max(columns);
        self.staged = self.staged.max(staged);
        self.slots[slot] = tiles;
        if self.slots[slot].len() > self.tiles {
            self.tiles = self.slots[slot].len();
            let bytes = self.slots.len() * self.tiles * size_of::<ShrinkTile>();
            self.device = Memory::zeroed(stream, bytes, "a table of adapters")?;
            (0..self.slots.len()).try_for_each(|slot| self.send(upload, slot))?;
        } else {
            self.send(upload, slot)?;
        }
        Ok(grows)
    }

    /// Brings a slot's tiles to the device.
    fn send(&self, upload: &mut Upload, slot: usize) -> Result<()> {
        let mut tiles = self.slots[slot].clone();
        tiles.resize(self.tiles, ShrinkTile::default());
        let bytes = bytes_of(&tiles);
        let mut writer = upload.to(self.device.address() + (slot * bytes.len()) as u64);
        writer.push(bytes)?;
        writer.finish()
    }

    /// Segments that a step of so many rows is likely to have: one an adapter, but of no more than
    /// [`ROWS`] rows.
    pub fn segments(&self, rows: usize) -> usize {
        let loaded = self.slots.iter().filter(|tiles| !tiles.is_empty()).count();
        rows.min(loaded.max(rows.div_ceil(ROWS)))
    }

    /// Floats that shrink writes for `rows` rows; 0 where nothing was ever loaded.
    pub fn len(&self, rows: usize) -> usize {
        self.splits(rows) * rows * self.h_stride
    }

    fn params(&self, site: &Site, step: &Step) -> LoraDecodeParams {
        LoraDecodeParams {
            shrink: self.device.address(),
            pairs: site.pairs_address(),
            segments: step.segments.address,
            segment_count: step.segments.count,
            x: 0,
            y: 0,
            out: 0,
            h: 0,
            told: 0,
            rows: to_u32(step.rows),
            width: 0,
            h_stride: to_u32(self.h_stride),
            splits: to_u32(self.splits(step.rows)),
            shrink_tiles: to_u32(self.tiles),
            targets: to_u32(site.shape.targets.len()),
            columns: 0,
            staged: to_u32(self.staged),
            tile_end: [0; TARGETS_MAX],
            target_column: [0; TARGETS_MAX],
        }
    }
}

/// Parts of so many inputs with which blocks that shrink so many tiles have the least to do.
fn splits(inputs: usize, tiles: usize, blocks: usize) -> usize {
    let cost = |splits: &usize| {
        let brought = inputs.div_ceil(splits * ON_THEIR_WAY);
        (tiles * splits).div_ceil(blocks) * (100 * brought + PIECE_COST)
    };
    (1..=splits_most(inputs)).rev().min_by_key(cost).unwrap_or(1)
}

fn splits_most(inputs: usize) -> usize {
    (inputs / ON_THEIR_WAY).clamp(1, SPLITS_MAX)
}

/// How expand cuts a site's outputs into tiles.
struct Tiles {
    columns: usize,
    end: [u32; TARGETS_MAX],
    first_column: [u32; TARGETS_MAX],
    count: usize,
}

impl Tiles {
    /// The cut that makes `blocks` work the least, with so many segments of a rank of `staged`.
    fn new(shape: &SiteShape, staged: usize, segments: usize, blocks: usize) -> Self {
        let count = |columns| shape.targets.iter().map(|it| it.div_ceil(columns)).sum::<usize>();
        let columns = cheapest(&TILE_COLUMNS, count, staged, (segments, blocks));
        let (mut end, mut first_column) = ([0; TARGETS_MAX], [0; TARGETS_MAX]);
        let (mut tiles, mut column) = (0, 0);
        for (target, outputs) in shape.targets.iter().enumerate() {
            tiles += outputs.div_ceil(columns);
            end[target] = to_u32(tiles);
            first_column[target] = to_u32(column);
            column += outputs;
        }
        Self { columns, end, first_column, count: tiles }
    }
}

/// The width of tiles, `count` of them a segment, with which blocks have the least to do.
fn cheapest(
    widths: &[usize],
    count: impl Fn(usize) -> usize,
    staged: usize,
    (segments, blocks): (usize, usize),
) -> usize {
    let cost = |columns: &usize| {
        let bytes = columns * staged * SIXTEEN_BITS as usize;
        (segments * count(*columns)).div_ceil(blocks) * (bytes + TILE_COST)
    };
    widths.iter().copied().min_by_key(cost).unwrap_or(widths[0])
}

/// The shrunk activations of [`ROWS`] rows, and a tile of results.
const fn expand_shared_bytes(staged: usize, columns: usize) -> usize {
    ROWS * ((staged + GAP) * SIXTEEN_BITS as usize + (columns + GAP) * size_of::<f32>())
}

/// The tiles of one pair; none straddles two diagonal blocks.
fn add_tiles(pair: &PairEntry, input: usize, tiles: &mut Vec<ShrinkTile>) {
    if pair.shrink_rank == 0 || pair.exchange != 0 {
        return;
    }
    let inputs = to_u32(input) / pair.a_blocks;
    let ranks = pair.shrink_rank / pair.a_blocks;
    for block in 0..pair.a_blocks {
        for first in (0..ranks).step_by(TILE_RANKS as usize) {
            let rank = block * ranks + first;
            tiles.push(ShrinkTile {
                a: pair.a_row(rank, inputs, SIXTEEN_BITS),
                inputs,
                input: block * inputs,
                h: pair.h + rank,
                rows: (ranks - first).min(TILE_RANKS),
                padding: [0; 2],
            });
        }
    }
}

/// `told` is where it says that x is there, to a product that starts beside it.
pub fn shrink(
    device: &Device,
    x: &Buf,
    (site, step): (&Site, &Step),
    h: &mut Buf,
    told: Option<u64>,
) -> Result<()> {
    let table = &site.decode;
    let Some(kernels) = device.kernels.lora_decode.as_ref().filter(|_| table.tiles > 0) else {
        return Ok(());
    };
    let params = LoraDecodeParams {
        x: x.address(device.dtype, step.rows * site.shape.input),
        h: h.address(DType::F32, table.len(step.rows)),
        told: told.unwrap_or(0),
        width: to_u32(site.shape.input),
        ..table.params(site, step)
    };
    let pieces = step.rows * table.tiles * table.splits(step.rows);
    let alone = SHRINK_BLOCKS * device.processors;
    let blocks = if told.is_some() { table.blocks(step.rows) } else { alone };
    let beside = blocks == device.processors;
    let kernel = if beside { &kernels.shrink_beside } else { &kernels.shrink };
    device.launch(kernel, Grid::of(pieces.min(blocks), THREADS), &params)
}

pub fn expand(device: &Device, h: &Buf, site: &Site, step: &Step, y: &mut Buf) -> Result<()> {
    let adapted = Listed { address: step.segments.address, count: step.segments.count };
    launch_expand(device, h, (site, step, adapted), true, y)
}

/// `out = h B^T`, zeros where there is none, for a product that adds to it.
pub fn expand_ahead(
    device: &Device,
    h: &Buf,
    (site, step, all): (&Site, &Step, Listed),
    out: &mut Buf,
) -> Result<()> {
    launch_expand(device, h, (site, step, all), false, out)
}

fn launch_expand(
    device: &Device,
    h: &Buf,
    (site, step, segments): (&Site, &Step, Listed),
    adds: bool,
    out: &mut Buf,
) -> Result<()> {
    let table = &site.decode;
    let Some(kernels) = device.kernels.lora_decode.as_ref().filter(|_| table.tiles > 0) else {
        return Ok(());
    };
    let (width, blocks) = (site.shape.output(), EXPAND_BLOCKS * device.processors);
    let tiles = Tiles::new(&site.shape, table.staged, table.segments(step.rows), blocks);
    let out = out.address(device.dtype, step.rows * width);
    let params = LoraDecodeParams {
        segments: segments.address,
        segment_count: segments.count,
        y: if adds { out } else { 0 },
        out,
        h: h.address(DType::F32, table.len(step.rows)),
        width: to_u32(width),
        columns: to_u32(tiles.columns),
        tile_end: tiles.end,
        target_column: tiles.first_column,
        ..table.params(site, step)
    };
    let grid = Grid::of((step.rows * tiles.count).min(blocks), THREADS);
    let shared_bytes = expand_shared_bytes(table.staged, tiles.columns);
    device.launch(&kernels.expand, grid.shared(shared_bytes), &params)
}

/// `out = silu(gate) * up`, with what adapters add to both, in steps that graphs serve. False if it
/// is not for this.
pub fn expand_silu_mul(
    device: &Device,
    h: &Buf,
    (site, step): (&Site, &Step),
    (gate_up, width): (&Buf, usize),
    out: &mut Buf,
) -> Result<bool> {
    let (table, blocks) = (&site.decode, EXPAND_BLOCKS * device.processors);
    let serves = table.tiles > 0 && site.shape.targets == [width; 2] && width.is_multiple_of(8);
    let kernels = device.kernels.lora_decode.as_ref().filter(|_| serves);
    let (Some(kernels), Some(all)) = (kernels, step.segments.all) else { return Ok(false) };
    let count = |columns| width.div_ceil(columns);
    let columns =
        cheapest(&GATED_COLUMNS, count, 2 * table.staged, (table.segments(step.rows), blocks));
    let params = LoraDecodeParams {
        segments: all.address,
        segment_count: all.count,
        y: gate_up.address(device.dtype, step.rows * 2 * width),
        out: out.address(device.dtype, step.rows * width),
        h: h.address(DType::F32, table.len(step.rows)),
        width: to_u32(width),
        columns: to_u32(columns),
        tile_end: [to_u32(count(columns)); TARGETS_MAX],
        ..table.params(site, step)
    };
    let grid = Grid::of((step.rows * count(columns)).min(blocks), THREADS);
    let shared_bytes = 2 * expand_shared_bytes(table.staged, columns);
    device.launch(&kernels.gated, grid.shared(shared_bytes), &params)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_split_where_tiles_are_few() {
        assert_eq!([1, 24, 99, 396, 768].map(|tiles| splits(4096, tiles, 396)), [4, 4, 4, 1, 1]);
        assert_eq!([8, 256].map(|tiles| splits(14336, tiles, 396)), [14, 3]);
        assert_eq!([8, 256].map(|tiles| splits(896, tiles, 132)), [1, 1]);
    }

    #[test]
    fn tiles_are_wide_where_there_are_many() {
        let columns = |targets: &[usize], staged, rows| {
            let shape = SiteShape { input: 4096, targets: targets.to_vec(), slots: 1 };
            let Tiles { columns, end, first_column, count } = Tiles::new(&shape, staged, rows, 528);
            assert_eq!(end[targets.len() - 1] as usize, count);
            assert_eq!(first_column[0], 0);
            columns
        };
        assert_eq!(columns(&[14336, 14336], 16, 1), 256);
        assert_eq!(columns(&[14336, 14336], 16, 32), 1024);
        assert_eq!(columns(&[4096], 64, 32), 256);
    }
}
