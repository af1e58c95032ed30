//! Launches `add.cu`.

use crate::error::Result;

use super::device::{Device, Grid};
use super::memory::Buf;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct AddParams {
    delta: u64,
    residual: u64,
    elements: u64,
}

const _: () = assert!(size_of::<AddParams>() == 24);

const THREADS: u32 = 128;

pub fn add(device: &Device, delta: &Buf, elements: usize, residual: &mut Buf) -> Result<()> {
    let params = AddParams {
        delta: delta.address(device.dtype, elements),
        residual: residual.address(device.dtype, elements),
        elements: elements as u64,
    };
    let grid = Grid::of(elements.div_ceil(8 * THREADS as usize), THREADS);
    device.launch(&device.kernels.add, grid, &params)
}
