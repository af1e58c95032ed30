//! Launches `attention_decode.cu`, `attention_groups.cu`, `attention_tiles.cu` and
//! `attention_rows.cu`.
//!
//! Rows that are alone in their sequence go to the first kernel, longer runs to the second where it
//! is compiled, or to the third. These need 16 bits and one of four head widths; without them the
//! last kernel takes all rows.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::error::{Error, Result};
use crate::ops::Heads;

use super::cache::Cache;
use super::device::{Device, Grid, Kernel, to_u32};
use super::memory::{Buf, Memory};
use super::program::{Programs, SHARED_BYTES_ANYWHERE};
use super::step::{Index, Step, Work};
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct AttentionParams {
    index: Index,
    qkv: u64,
    shares: u64,
    table: u64,
    keys: u64,
    values: u64,
    out: u64,
    work: u64,
    partials: u64,
    arrivals: u64,
    query_heads: u32,
    key_heads: u32,
    dim: u32,
    block_tokens: u32,
    window: u32,
    scale: f32,
    first: u32,
    rows: u32,
    splits: u32,
    padding: u32,
}

const _: () = assert!(size_of::<AttentionParams>() == 152);

/// Rows that one entry of `attention_tiles.cu`'s work stands for.
pub const ROWS_OF_TILE: usize = 128;

/// Threads of a block of prefill, and of decode.
const TILES_THREADS: u32 = 128;
const THREADS: u32 = 192;

/// Positions of a tile, and the most chunks that a row is cut into (`attention.cuh`).
const TILE: usize = 192;
const CHUNKS_MAX: usize = 16;

/// Tiles of a chunk, at least.
const CHUNK_TILES_MIN: usize = 2;

/// Rows of one launch that cuts rows into chunks; bounds the memory of partial results.
const ROWS_MAX: usize = 256;

/// Query heads that a block of `attention_decode.cu` attends to.
const DECODE_HEADS: usize = 8;

/// Head widths that the kernels for tensor cores are compiled for.
const WIDTHS: [(usize, &str, &str); 4] = [
    (64, "attention_decode_64", "attention_tiles_64"),
    (96, "attention_decode_96", "attention_tiles_96"),
    (128, "attention_decode_128", "attention_tiles_128"),
    (256, "attention_decode_256", "attention_tiles_256"),
];

/// The widest head that a warp of `attention_rows.cu` holds, 8 elements a lane.
const DIM_MAX: usize = 256;

/// Kernels for one head width: `attention_decode.cu`, and for prefill `attention_groups.cu` where
/// it is compiled, or `attention_tiles.cu`.
pub struct TensorCores {
    dim: usize,
    decode: Kernel<AttentionParams>,
    prefill: Prefill,
}

/// How prefill is launched.
struct Prefill {
    kernel: Kernel<AttentionParams>,
    threads: u32,
    shared_bytes: usize,
    /// Blocks for each [`ROWS_OF_TILE`] rows of a head.
    parts: usize,
}

impl Prefill {
    fn new(programs: &Programs, dim: usize, tiles: &'static str) -> Result<Self> {
        let file = "attention_groups";
        let groups = GROUPS.iter().find(|(width, _)| *width == dim);
        if let (Some((_, name)), Some(_)) = (groups, programs.module(file)) {
            let shared_bytes = groups_shared_bytes(dim);
            let kernel = Kernel::new(programs, file, name)?.allow_shared(shared_bytes)?;
            return Ok(Self { kernel, threads: GROUPS_THREADS, shared_bytes, parts: 1 });
        }
        let shared_bytes = tiles_shared_bytes(dim);
        let kernel = Kernel::new(programs, "attention_tiles", tiles)?.allow_shared(shared_bytes)?;
        let parts = ROWS_OF_TILE / tile_shape(dim).0;
        Ok(Self { kernel, threads: TILES_THREADS, shared_bytes, parts })
    }
}

impl TensorCores {
    /// Those that were compiled: all or none.
    pub fn all(programs: &Programs) -> Result<Vec<Self>> {
        if programs.module("attention_tiles").is_none() {
            return Ok(Vec::new());
        }
        let load = |(dim, decode, tiles): (usize, &'static str, &'static str)| {
            let prefill = Prefill::new(programs, dim, tiles)?;
            let decode = Kernel::new(programs, "attention_decode", decode)?;
            Ok(Self { dim, decode: decode.allow_shared(decode_shared_bytes(dim))?, prefill })
        };
        WIDTHS.into_iter().map(load).collect()
    }
}

/// Those that `attention_groups.cu` is compiled for; threads of a block, which takes all rows of
/// an entry.
const GROUPS: [(usize, &str); 2] = [(64, "attention_groups_64"), (128, "attention_groups_128")];
const GROUPS_THREADS: u32 = 256;

/// The queries, and two tiles of keys and of values; and what is left out to start at a multiple of
/// 1024.
const fn groups_shared_bytes(dim: usize) -> usize {
    let keys = if dim > 64 { 48 } else { 64 };
    (ROWS_OF_TILE + 4 * keys) * dim * 2 + 1024
}

/// Rows that a block of prefill takes, and positions of its tiles.
const fn tile_shape(dim: usize) -> (usize, usize) {
    match dim {
        0..=64 => (128, 64),
        65..=128 => (128, 48),
        _ => (64, 32),
    }
}

/// The queries, and two tiles of keys and of values, in rows padded by 16 bytes.
const fn tiles_shared_bytes(dim: usize) -> usize {
    let (rows, keys) = tile_shape(dim);
    (rows + 4 * keys) * (dim + 8) * 2
}

const _: () = {
    assert!(tiles_shared_bytes(64) <= SHARED_BYTES_ANYWHERE);
    assert!(tiles_shared_bytes(128) <= SHARED_BYTES_ANYWHERE);
    assert!(tiles_shared_bytes(256) <= SHARED_BYTES_ANYWHERE);
};

/// A share of every warp and head: a sum of values, largest score, sum of weights, and what parts
/// the banks.
fn decode_shared_bytes(dim: usize) -> usize {
    DECODE_HEADS * (THREADS as usize / 32) * (dim + 4) * size_of::<f32>()
}

/// Memory for rows whose positions are shared between blocks. It grows when a batch needs more.
pub struct Scratch {
    partials: Memory,
    arrivals: Memory,
}

impl Scratch {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let room = || Memory::zeroed(stream, 0, "partial attention");
        Ok(Self { partials: room()?, arrivals: room()? })
    }

    /// Addresses that graphs were recorded with.
    pub fn addresses(&self) -> [u64; 2] {
        [self.partials.address(), self.arrivals.address()]
    }

    fn reserve(&mut self, device: &Device, partials: usize, arrivals: usize) -> Result<()> {
        for (memory, bytes) in [(&mut self.partials, partials), (&mut self.arrivals, arrivals)] {
            if memory.bytes() < bytes {
                let room = bytes.next_power_of_two();
                *memory = Memory::zeroed(&device.stream, room, "partial attention")?;
            }
        }
        Ok(())
    }
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub enum Fused<'a> {
    Whole(&'a Buf),
    /// In so many splits, `[splits, rows, fused]` in f32, whose sum they are: only where
    /// [`rotates`] says so.
    Splits(&'a Buf, usize),
}

impl Fused<'_> {
    /// Where they are as a whole, where their splits, and how many of these.
    fn places(&self, device: &Device, elements: usize) -> (u64, u64, usize) {
        match self {
            Fused::Whole(buf) => (buf.address(device.dtype, elements), 0, 0),
            Fused::Splits(buf, count) => (0, buf.address(DType::F32, count * elements), *count),
        }
    }
}

/// The buffers of one call.
pub struct Operands<'a> {
    pub fused: Fused<'a>,
    /// Angles, where queries and keys are still to be rotated and kept: [`rotates`] says when.
    pub table: Option<&'a Weight>,
    pub cache: &'a Cache,
    pub out: &'a mut Buf,
}

/// Whether attention of this step rotates queries and keys by itself: where all rows are alone in
/// their sequence, and the pairs of a head that belong together come to the same lane.
pub fn rotates(device: &Device, heads: &Heads, step: &Step) -> bool {
    let tensor = device.kernels.attention_tensor.iter().any(|kernels| kernels.dim == heads.dim);
    tensor && heads.dim.is_multiple_of(64) && step.tiles.count == 0
}

pub fn attention(
    device: &Device,
    scratch: &mut Scratch,
    heads: &Heads,
    step: &Step,
    operands: Operands<'_>,
) -> Result<()> {
    let params = params(device, heads, step, &operands);
    let wide = device.kernels.attention_tensor.iter().find(|kernels| kernels.dim == heads.dim);
    let Some(kernels) = wide else {
        let all = Work { address: 0, count: step.rows };
        let (kernel, heads_at_once) = rows_kernel(device, heads)?;
        let by_rows = ByRows { kernel, heads_at_once, shared_bytes: 0 };
        return by_rows.launch(device, scratch, (heads, step), (params, all));
    };
    let Prefill { kernel, threads, shared_bytes, parts } = &kernels.prefill;
    let grid = Grid::of_3((heads.queries, step.tiles.count, *parts), *threads);
    let tiles = AttentionParams { work: step.tiles.address, ..params };
    device.launch(kernel, grid.shared(*shared_bytes), &tiles)?;
    let shared_bytes = decode_shared_bytes(heads.dim);
    let by_rows = ByRows { kernel: &kernels.decode, heads_at_once: DECODE_HEADS, shared_bytes };
    by_rows.launch(device, scratch, (heads, step), (params, step.singles))
}

fn params(
    device: &Device,
    heads: &Heads,
    step: &Step,
    Operands { fused, table, cache, out }: &Operands<'_>,
) -> AttentionParams {
    let (qkv, shares, splits) = fused.places(device, step.rows * heads.fused());
    AttentionParams {
        index: step.index,
        qkv,
        shares,
        table: table.map_or(0, Weight::floats),
        keys: cache.keys(),
        values: cache.values(),
        out: out.address(device.dtype, step.rows * heads.queries * heads.dim),
        work: 0,
        partials: 0,
        arrivals: 0,
        query_heads: to_u32(heads.queries),
        key_heads: to_u32(heads.keys_values),
        dim: to_u32(heads.dim),
        block_tokens: cache.block_tokens(),
        window: heads.window.map_or(0, to_u32),
        scale: heads.scale * std::f32::consts::LOG2_E,
        first: 0,
        rows: to_u32(step.rows),
        splits: to_u32(splits),
        padding: 0,
    }
}

/// The kernel of `attention_rows.cu` for these heads, and how many heads it takes at once.
fn rows_kernel<'a>(
    device: &'a Device,
    heads: &Heads,
) -> Result<(&'a Kernel<AttentionParams>, usize)> {
    if heads.dim > DIM_MAX {
        return Err(Error::Device(format!("heads of {}: up to {DIM_MAX} would do", heads.dim)));
    }
    let lanes = [8, 16, 32].iter().position(|lanes| lanes * 8 >= heads.dim).unwrap_or(2);
    let [one, four] = &device.kernels.attention_rows[lanes];
    Ok(if heads.queries == heads.keys_values { (one, 1) } else { (four, 4) })
}

/// A kernel that takes rows one by one, cut into chunks as `attention.cuh` says.
struct ByRows<'a> {
    kernel: &'a Kernel<AttentionParams>,
    heads_at_once: usize,
    shared_bytes: usize,
}

impl ByRows<'_> {
    /// Launches it over the rows of a list, or, where that has no address, over the first rows.
    fn launch(
        &self,
        device: &Device,
        scratch: &mut Scratch,
        (heads, step): (&Heads, &Step),
        (mut params, work): (AttentionParams, Work),
    ) -> Result<()> {
        let chunks = chunks_max(heads, step);
        let group = heads.queries / heads.keys_values;
        let parts = heads.keys_values * group.div_ceil(self.heads_at_once);
        if chunks > 1 {
            let tasks = work.count.min(ROWS_MAX) * parts;
            let floats = tasks * self.heads_at_once * CHUNKS_MAX * (2 + heads.dim);
            scratch.reserve(device, floats * size_of::<f32>(), tasks * size_of::<u32>())?;
        }
        params.partials = scratch.partials.address();
        params.arrivals = scratch.arrivals.address();
        for first in (0..work.count).step_by(ROWS_MAX) {
            let count = (work.count - first).min(ROWS_MAX);
            params.first = to_u32(first);
            params.work = if work.address == 0 { 0 } else { work.address + 4 * first as u64 };
            let grid = Grid::of_3((chunks, parts, count), THREADS);
            device.launch(self.kernel, grid.shared(self.shared_bytes), &params)?;
        }
        Ok(())
    }
}

/// The most chunks that as many positions are cut into, or fewer.
pub fn chunks_of(seen: usize) -> usize {
    seen.div_ceil(TILE * CHUNK_TILES_MIN).min(CHUNKS_MAX)
}

/// The most chunks that a row of this step is cut into; `attention_rows.cu` cuts each by itself.
fn chunks_max(heads: &Heads, step: &Step) -> usize {
    let last = step.batch.positions.iter().max().map_or(0, |last| *last as usize);
    let chunks = step.alike.map_or(chunks_of(last + 1), |alike| alike.chunks);
    chunks.min(heads.window.map_or(CHUNKS_MAX, chunks_of))
}
