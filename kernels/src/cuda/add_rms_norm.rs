//! Launches `add_rms_norm.cu`.

use crate::error::Result;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct AddRmsNormParams {
    residual: u64,
    weight: u64,
    hidden: u64,
    width: u32,
    eps: f32,
}

const _: () = assert!(size_of::<AddRmsNormParams>() == 32);

pub fn add_rms_norm(
    device: &Device,
    residual: &mut Buf,
    (weight, eps): (&Weight, f32),
    rows: usize,
    hidden: &mut Buf,
) -> Result<()> {
    let elements = rows * weight.cols;
    let params = AddRmsNormParams {
        residual: residual.address(device.dtype, elements),
        weight: weight.floats(),
        hidden: hidden.address(device.dtype, elements),
        width: to_u32(weight.cols),
        eps,
    };
    let grid = Grid::of(rows, threads_for(weight.cols, 1024));
    device.launch(&device.kernels.add_rms_norm, grid, &params)
}
