//! The paged KV cache, and launches of `attention_rows.cu` and `attention_tiles.cu`.
//!
//! Rows that are alone in their sequence go to the first kernel, longer runs to the second, which
//! needs tensor cores and one of four head widths; without these the first kernel takes all rows.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::error::{Error, Result};
use crate::ops::{CacheShape, Heads};

use super::device::{Device, Grid, Kernel, to_u32};
use super::memory::{Buf, Memory};
use super::program::Programs;
use super::step::{Index, Step, Work};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct AttentionParams {
    index: Index,
    qkv: u64,
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
    padding: u32,
}

const _: () = assert!(size_of::<AttentionParams>() == 128);

/// Rows that `attention_tiles.cu` takes at once.
pub const ROWS_OF_TILE: usize = 64;

/// Threads of both kernels.
const THREADS: u32 = 128;

/// Positions of a tile, and the most chunks that a row is cut into, in `attention_rows.cu`.
const TILE: usize = 128;
const CHUNKS_MAX: usize = 16;

/// Rows of one launch of `attention_rows.cu`; bounds the memory of partial results.
const ROWS_MAX: usize = 256;

/// Head widths that `attention_tiles.cu` is compiled for.
const TILED: [(usize, &str); 4] = [
    (64, "attention_tiles_64"),
    (96, "attention_tiles_96"),
    (128, "attention_tiles_128"),
    (256, "attention_tiles_256"),
];

/// The widest head that a warp of `attention_rows.cu` holds, 8 elements a lane.
const DIM_MAX: usize = 256;

/// Keys and values of one layer, `[blocks, heads, block_tokens, dim]` each.
pub struct Cache {
    memory: Memory,
    shape: CacheShape,
    held: DType,
}

impl Cache {
    pub fn new(stream: &Arc<CudaStream>, shape: CacheShape, held: DType) -> Result<Self> {
        if shape.dtype != held && held != DType::F32 {
            let wanted = shape.dtype;
            let why = format!("a KV cache of {wanted} was asked for beside a model of {held}");
            return Err(Error::Device(why + ": the CUDA backend keeps both in one type"));
        }
        let memory = Memory::zeroed(stream, 2 * half_bytes(&shape, held), "the KV cache")?;
        Ok(Self { memory, shape, held })
    }

    pub fn keys(&self) -> u64 {
        self.memory.address()
    }

    pub fn values(&self) -> u64 {
        self.memory.address() + half_bytes(&self.shape, self.held) as u64
    }

    /// The element type that its values are rounded to, if it is not the one they are kept in.
    pub fn stands_for(&self) -> Option<DType> {
        (self.shape.dtype != self.held).then_some(self.shape.dtype)
    }

    pub fn block_tokens(&self) -> u32 {
        to_u32(self.shape.block_tokens)
    }
}

fn half_bytes(shape: &CacheShape, held: DType) -> usize {
    let elements = shape.blocks * shape.block_tokens * shape.heads * shape.dim;
    (elements * held.bytes()).next_multiple_of(256)
}

/// `attention_tiles.cu` for one head width.
pub struct Tiles {
    dim: usize,
    shared_bytes: usize,
    kernel: Kernel<AttentionParams>,
}

impl Tiles {
    /// Those that were compiled: all or none.
    pub fn all(programs: &Programs) -> Result<Vec<Self>> {
        if programs.module("attention_tiles").is_none() {
            return Ok(Vec::new());
        }
        let load = |(dim, name): (usize, &'static str)| {
            // The queries, and two tiles of keys and of values, in rows padded by 16 bytes.
            let keys = if dim > 128 { 32 } else { 64 };
            let shared_bytes = (ROWS_OF_TILE + 4 * keys) * (dim + 8) * 2;
            let kernel = Kernel::new(programs, "attention_tiles", name)?;
            Ok(Self { dim, shared_bytes, kernel: kernel.allow_shared(shared_bytes)? })
        };
        TILED.into_iter().map(load).collect()
    }
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

/// The buffers of one call.
pub struct Operands<'a> {
    pub qkv: &'a Buf,
    pub cache: &'a Cache,
    pub out: &'a mut Buf,
}

pub fn attention(
    device: &Device,
    scratch: &mut Scratch,
    heads: &Heads,
    step: &Step,
    operands: Operands<'_>,
) -> Result<()> {
    let params = params(device, heads, step, &operands);
    let tiled = device.kernels.attention_tiles.iter().find(|tiles| tiles.dim == heads.dim);
    let Some(tiled) = tiled else {
        let all = Work { address: 0, count: step.rows };
        return rows(device, scratch, heads, step, (params, all));
    };
    let grid = Grid::of_3((step.tiles.count, heads.queries, 1), THREADS);
    let tiles = AttentionParams { work: step.tiles.address, ..params };
    device.launch(&tiled.kernel, grid.shared(tiled.shared_bytes), &tiles)?;
    rows(device, scratch, heads, step, (params, step.singles))
}

fn params(
    device: &Device,
    heads: &Heads,
    step: &Step,
    Operands { qkv, cache, out }: &Operands<'_>,
) -> AttentionParams {
    AttentionParams {
        index: step.index,
        qkv: qkv.address(device.dtype, step.rows * heads.fused()),
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
        padding: 0,
    }
}

/// Launches `attention_rows.cu` over rows of a list, or over as many rows from the first on.
fn rows(
    device: &Device,
    scratch: &mut Scratch,
    heads: &Heads,
    step: &Step,
    (mut params, work): (AttentionParams, Work),
) -> Result<()> {
    if heads.dim > DIM_MAX {
        return Err(Error::Device(format!("heads of {}: up to {DIM_MAX} would do", heads.dim)));
    }
    let chunks = chunks_max(heads, step);
    let group = heads.queries / heads.keys_values;
    let at_once = [1, 2, 4, 8].into_iter().find(|heads| *heads >= group).unwrap_or(8);
    let parts = heads.keys_values * group.div_ceil(at_once);
    let lanes = [8, 16, 32].iter().position(|lanes| lanes * 8 >= heads.dim).unwrap_or(2);
    let kernel = &device.kernels.attention_rows[lanes][at_once.ilog2() as usize];
    if chunks > 1 {
        let tasks = work.count.min(ROWS_MAX) * parts;
        let partials = tasks * at_once * CHUNKS_MAX * (2 + heads.dim) * size_of::<f32>();
        scratch.reserve(device, partials, tasks * size_of::<u32>())?;
    }
    (params.partials, params.arrivals) = (scratch.partials.address(), scratch.arrivals.address());
    for first in (0..work.count).step_by(ROWS_MAX) {
        let count = (work.count - first).min(ROWS_MAX);
        params.first = to_u32(first);
        params.work = if work.address == 0 { 0 } else { work.address + 4 * first as u64 };
        device.launch(kernel, Grid::of_3((chunks, parts, count), THREADS), &params)?;
    }
    Ok(())
}

/// The most chunks that a row of this step is cut into; `attention_rows.cu` cuts each by itself.
fn chunks_max(heads: &Heads, step: &Step) -> usize {
    let last = step.batch.positions.iter().max().map_or(0, |last| *last as usize);
    let seen = (last + 1).min(heads.window.unwrap_or(usize::MAX));
    seen.div_ceil(TILE).min(CHUNKS_MAX)
}
