//! Launches `silu_mul.cu`.

use std::ops::Range;

use crate::error::Result;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SiluMulParams {
    gate_up: u64,
    out: u64,
    width: u32,
    padding: u32,
}

const _: () = assert!(size_of::<SiluMulParams>() == 24);

pub fn silu_mul(
    device: &Device,
    gate_up: &Buf,
    width: usize,
    rows: Range<usize>,
    out: &mut Buf,
) -> Result<()> {
    let skipped = (rows.start * width * device.dtype.bytes()) as u64;
    let params = SiluMulParams {
        gate_up: gate_up.address(device.dtype, rows.end * 2 * width) + 2 * skipped,
        out: out.address(device.dtype, rows.end * width) + skipped,
        width: to_u32(width),
        padding: 0,
    };
    let of_thread = if width.is_multiple_of(8) { 8 } else { 1 };
    let threads = threads_for(width, 128);
    let blocks = width.div_ceil(threads as usize * of_thread);
    device.launch(&device.kernels.silu_mul, Grid::of_3((blocks, rows.len(), 1), threads), &params)
}
