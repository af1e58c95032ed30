//! Launches `pick_rows.cu`.

use crate::error::Result;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::step::IndexPool;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PickRowsParams {
    x: u64,
    picked: u64,
    out: u64,
    width: u32,
    padding: u32,
}

const _: () = assert!(size_of::<PickRowsParams>() == 32);

pub fn pick_rows(
    device: &Device,
    pool: &mut IndexPool,
    x: &Buf,
    (width, picked): (usize, &[u32]),
    out: &mut Buf,
) -> Result<()> {
    let rows = picked.iter().max().map_or(0, |last| *last as usize + 1);
    let indices = pool.upload(picked)?;
    let params = PickRowsParams {
        x: x.address(device.dtype, rows * width),
        picked: indices.device.address(),
        out: out.address(device.dtype, picked.len() * width),
        width: to_u32(width),
        padding: 0,
    };
    let grid = Grid::of(picked.len(), threads_for(width, 512));
    device.launch(&device.kernels.pick_rows, grid, &params)
}
