//! Launches `kv_store.cu`.

use contract::tensor::DType;

use crate::error::Result;
use crate::ops::Heads;

use super::cache::Cache;
use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::step::{Index, Step};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct KvStoreParams {
    index: Index,
    qkv: u64,
    keys: u64,
    values: u64,
    query_heads: u32,
    key_heads: u32,
    dim: u32,
    block_tokens: u32,
    stands_for: u32,
    padding: u32,
}

const _: () = assert!(size_of::<KvStoreParams>() == 88);

pub fn kv_store(
    device: &Device,
    qkv: &Buf,
    heads: &Heads,
    step: &Step,
    cache: &Cache,
) -> Result<()> {
    let params = KvStoreParams {
        index: step.index,
        qkv: qkv.address(device.dtype, step.rows * heads.fused()),
        keys: cache.keys(),
        values: cache.values(),
        query_heads: to_u32(heads.queries),
        key_heads: to_u32(heads.keys_values),
        dim: to_u32(heads.dim),
        block_tokens: cache.block_tokens(),
        stands_for: match cache.stands_for() {
            None | Some(DType::F32) => 0,
            Some(DType::F16) => 1,
            Some(DType::Bf16) => 2,
        },
        padding: 0,
    };
    let grid = Grid::of(step.rows, threads_for(heads.keys_values * heads.dim, 256));
    device.launch(&device.kernels.kv_store, grid, &params)
}
