//! Launches `pick_rows.cu`.

use std::ops::Range;

use crate::error::Result;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::step::Step;

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
    x: &Buf,
    width: usize,
    (step, picked): (&Step, Range<usize>),
    out: &mut Buf,
) -> Result<()> {
    let params = PickRowsParams {
        x: x.address(device.dtype, step.rows * width),
        picked: step.picked.address + (picked.start * size_of::<u32>()) as u64,
        out: out.address(device.dtype, picked.len() * width),
        width: to_u32(width),
        padding: 0,
    };
    let grid = Grid::of(picked.len(), threads_for(width, 512));
    device.launch(&device.kernels.pick_rows, grid, &params)
}
