//! Launches `lora_decode_shrink.cu`, `lora_decode_expand.cu` and `lora_decode_gated.cu`: steps that
//! graphs serve.
//!
//! A launch is sized by what is loaded at the site, not by what the batch names, so that it can be
//! recorded once for every mix of adapters.

use contract::tensor::DType;

use crate::error::Result;
use crate::lora::SiteShape;

use super::beside::Shrink;
use super::device::{Device, Grid, Kernel, to_u32};
use super::lora::{Site, TARGETS_MAX};
use super::memory::Buf;
use super::program::{Programs, SHARED_BYTES_ANYWHERE};
use super::step::{Listed, Step};

mod table;

pub use table::{DecodeTable, SPLITS_MAX};

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

/// Rows of a segment, at most.
pub const ROWS: usize = 8;

/// Lora ranks of one pair that expand has room for, as it stages them
/// ([`super::lora::PairEntry::staged`]).
pub const STAGED_MAX: usize = 1536;

/// Elements that part the banks of neighbouring rows.
const GAP: usize = 8;

/// Shared memory of expand, at most.
const EXPAND_BYTES_MAX: usize = expand_shared_bytes(STAGED_MAX, TILE_COLUMNS[2]);
const GATED_BYTES_MAX: usize = 2 * expand_shared_bytes(STAGED_MAX, GATED_COLUMNS[2]);

const _: () =
    assert!(EXPAND_BYTES_MAX <= SHARED_BYTES_ANYWHERE && GATED_BYTES_MAX <= SHARED_BYTES_ANYWHERE);

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

/// A product may start beside it.
pub fn shrink(
    device: &Device,
    x: &Buf,
    (site, step): (&Site, &Step),
    h: &mut Buf,
    shrink: Shrink,
) -> Result<()> {
    let table = &site.decode;
    let Some(kernels) = device.kernels.lora_decode.as_ref().filter(|_| table.tiles() > 0) else {
        return Ok(());
    };
    let told = match shrink {
        Shrink::Beside(told) => told,
        _ => 0,
    };
    let params = LoraDecodeParams {
        x: x.address(device.dtype, step.rows * site.shape.input),
        h: h.address(DType::F32, table.len(step.rows)),
        told,
        width: to_u32(site.shape.input),
        ..table.params(site, step)
    };
    let pieces = step.rows * table.tiles() * table.splits(step.rows);
    let alone = SHRINK_BLOCKS * device.processors;
    let blocks = if told != 0 { table.blocks(step.rows) } else { alone };
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
    let Some(kernels) = device.kernels.lora_decode.as_ref().filter(|_| table.tiles() > 0) else {
        return Ok(());
    };
    let (width, blocks) = (site.shape.output(), EXPAND_BLOCKS * device.processors);
    let tiles = Tiles::new(&site.shape, table.staged(), table.segments(step.rows), blocks);
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
    let shared_bytes = expand_shared_bytes(table.staged(), tiles.columns);
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
    let serves = table.tiles() > 0 && site.shape.targets == [width; 2] && width.is_multiple_of(8);
    let kernels = device.kernels.lora_decode.as_ref().filter(|_| serves);
    let (Some(kernels), Some(all)) = (kernels, step.segments.all) else { return Ok(false) };
    let count = |columns| width.div_ceil(columns);
    let columns =
        cheapest(&GATED_COLUMNS, count, 2 * table.staged(), (table.segments(step.rows), blocks));
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
    let shared_bytes = 2 * expand_shared_bytes(table.staged(), columns);
    device.launch(&kernels.gated, grid.shared(shared_bytes), &params)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

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
