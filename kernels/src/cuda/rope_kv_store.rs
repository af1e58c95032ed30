//! Launches `rope_kv_store.cu`.

use crate::error::Result;
use crate::ops::Heads;

use super::cache::Cache;
use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::step::{Index, Step};
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RopeKvStoreParams {
    index: Index,
    qkv: u64,
    table: u64,
    keys: u64,
    values: u64,
    query_heads: u32,
    key_heads: u32,
    dim: u32,
    block_tokens: u32,
    stands_for: u32,
    padding: u32,
}

const _: () = assert!(size_of::<RopeKvStoreParams>() == 96);

/// Threads of a block at most, and pieces of a row that each asks for at once.
const THREADS_MAX: u32 = 128;
const EACH: usize = 3;

pub fn rope_kv_store(
    device: &Device,
    qkv: &mut Buf,
    (heads, table): (&Heads, &Weight),
    step: &Step,
    cache: &Cache,
) -> Result<()> {
    let params = RopeKvStoreParams {
        index: step.index,
        qkv: qkv.address(device.dtype, step.rows * heads.fused()),
        table: table.floats(),
        keys: cache.keys(),
        values: cache.values(),
        query_heads: to_u32(heads.queries),
        key_heads: to_u32(heads.keys_values),
        dim: to_u32(heads.dim),
        block_tokens: cache.block_tokens(),
        stands_for: cache.stands_for(),
        padding: 0,
    };
    let pairs = heads.fused() / 2;
    let grid = Grid::of(step.rows, threads_for(pairs.div_ceil(EACH), THREADS_MAX));
    device.launch(&device.kernels.rope_kv_store, grid, &params)
}
