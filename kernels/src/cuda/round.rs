//! Launches `round.cu`.

use crate::error::Result;

use super::device::{Device, Grid};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundParams {
    from: u64,
    to: u64,
    elements: u64,
}

const _: () = assert!(size_of::<RoundParams>() == 24);

const THREADS: u32 = 128;

/// Both places start at multiples of 32 bytes.
pub fn round(device: &Device, from: u64, elements: usize, to: u64) -> Result<()> {
    let params = RoundParams { from, to, elements: elements as u64 };
    let grid = Grid::of(elements.div_ceil(8 * THREADS as usize), THREADS);
    device.launch(&device.kernels.round, grid, &params)
}
