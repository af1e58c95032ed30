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

/// Rows from which on multiprocessors have enough of them, and how many threads of another block
/// each thread plays then.
const ROWS_MANY: usize = 512;
const TURNS: usize = 4;

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
    let kernels = &device.kernels;
    let (kernel, threads) = match rows >= ROWS_MANY && weight.cols.is_multiple_of(8) {
        true => (&kernels.add_rms_norm_many, threads_for(weight.cols.div_ceil(TURNS), 256)),
        false => (&kernels.add_rms_norm, threads_for(weight.cols, 1024)),
    };
    device.launch(kernel, Grid::of(rows, threads), &params)
}
