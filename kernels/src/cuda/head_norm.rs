//! Launches `head_norm.cu`.

use crate::error::Result;
use crate::ops::{HeadNorm, Heads};

use super::device::{Device, Grid, to_u32};
use super::memory::Buf;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HeadNormParams {
    qkv: u64,
    queries: u64,
    keys: u64,
    query_heads: u32,
    key_heads: u32,
    dim: u32,
    eps: f32,
}

const _: () = assert!(size_of::<HeadNormParams>() == 40);

/// Heads of one block, a warp each.
const HEADS: usize = 4;

pub fn head_norm(
    device: &Device,
    qkv: &mut Buf,
    heads: &Heads,
    norm: &HeadNorm<'_, Weight>,
    rows: usize,
) -> Result<()> {
    let params = HeadNormParams {
        qkv: qkv.address(device.dtype, rows * heads.fused()),
        queries: norm.queries.floats(),
        keys: norm.keys.floats(),
        query_heads: to_u32(heads.queries),
        key_heads: to_u32(heads.keys_values),
        dim: to_u32(heads.dim),
        eps: norm.eps,
    };
    let blocks = (heads.queries + heads.keys_values).div_ceil(HEADS);
    let grid = Grid::of_3((blocks, rows, 1), 32 * HEADS as u32);
    device.launch(&device.kernels.head_norm, grid, &params)
}
