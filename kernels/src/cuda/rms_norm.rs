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

impl RmsNormParams {
    /// Of rows at `x`, to `out`.
    pub fn new(x: u64, weight: &Weight, eps: f32, out: u64) -> Self {
        Self { x, weight: weight.floats(), out, width: to_u32(weight.cols), eps }
    }
}

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
    let [x, out] = [x, out].map(|buf| buf.address(device.dtype, elements) + skipped);
    launch(device, rows.len(), &RmsNormParams::new(x, weight, eps, out))
}

pub fn launch(device: &Device, rows: usize, params: &RmsNormParams) -> Result<()> {
    let grid = Grid::of(rows, threads_for(params.width as usize, 512));
    device.launch(&device.kernels.rms_norm, grid, params)
}
