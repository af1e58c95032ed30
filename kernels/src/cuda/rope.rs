//! Launches `rope.cu`.

use crate::error::Result;
use crate::ops::Heads;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::step::Step;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RopeParams {
    qkv: u64,
    table: u64,
    positions: u64,
    query_heads: u32,
    key_heads: u32,
    dim: u32,
    padding: u32,
}

const _: () = assert!(size_of::<RopeParams>() == 40);

pub fn rope(
    device: &Device,
    qkv: &mut Buf,
    heads: &Heads,
    table: &Weight,
    step: &Step,
) -> Result<()> {
    let params = RopeParams {
        qkv: qkv.address(device.dtype, step.rows * heads.fused()),
        table: table.floats(),
        positions: step.index.positions,
        query_heads: to_u32(heads.queries),
        key_heads: to_u32(heads.keys_values),
        dim: to_u32(heads.dim),
        padding: 0,
    };
    let pairs = (heads.queries + heads.keys_values) * heads.dim / 2;
    let grid = Grid::of(step.rows, threads_for(pairs, 512));
    device.launch(&device.kernels.rope, grid, &params)
}
