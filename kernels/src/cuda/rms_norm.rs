//! Launches `rms_norm.cu`.

use std::ops::Range;

use crate::error::Result;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RmsNormParams {
    x: u64,
    weight: u64,
    out: u64,
    width: u32,
    eps: f32,
}

const _: () = assert!(size_of::<RmsNormParams>() == 32);

pub fn rms_norm(
    device: &Device,
    x: &Buf,
    weight: &Weight,
    eps: f32,
    rows: Range<usize>,
    out: &mut Buf,
) -> Result<()> {
    let elements = rows.end * weight.cols;
    let skipped = (rows.start * weight.cols * device.dtype.bytes()) as u64;
    let params = RmsNormParams {
        x: x.address(device.dtype, elements) + skipped,
        weight: weight.floats(),
        out: out.address(device.dtype, elements) + skipped,
        width: to_u32(weight.cols),
        eps,
    };
    let grid = Grid::of(rows.len(), threads_for(weight.cols, 512));
    device.launch(&device.kernels.rms_norm, grid, &params)
}
