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

/// Rows from which on they fill the device, so that how many share a multiprocessor counts for more
/// than how soon one is done; and what a block of them takes.
const MANY: usize = 512;
const MANY_THREADS: u32 = 256;
const EACH: usize = 4;
const MANY_WIDTH_MAX: usize = EACH * MANY_THREADS as usize * 8;

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
    let (kernels, width) = (&device.kernels, weight.cols);
    if rows >= MANY && width.is_multiple_of(8) && width <= MANY_WIDTH_MAX {
        let grid = Grid::of(rows, threads_for(width.div_ceil(EACH), MANY_THREADS));
        return device.launch(&kernels.add_rms_norm_many, grid, &params);
    }
    device.launch(&kernels.add_rms_norm, Grid::of(rows, threads_for(width, 1024)), &params)
}
