//! Launches `embed.cu`.

use crate::error::Result;

use super::device::{Device, Grid, threads_for, to_u32};
use super::memory::Buf;
use super::sample::Tokens;
use super::step::Step;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct EmbedParams {
    table: u64,
    tokens: u64,
    drawn: u64,
    out: u64,
    first: u32,
    table_rows: u32,
    width: u32,
    padding: u32,
}

const _: () = assert!(size_of::<EmbedParams>() == 48);

pub fn embed(
    device: &Device,
    (table, first): (&Weight, u32),
    tokens: &Tokens,
    step: &Step,
    out: &mut Buf,
) -> Result<()> {
    let params = EmbedParams {
        table: table.elements(),
        tokens: step.index.tokens,
        drawn: tokens.address(),
        out: out.address(device.dtype, step.rows * table.cols),
        first,
        table_rows: to_u32(table.rows),
        width: to_u32(table.cols),
        padding: 0,
    };
    let grid = Grid::of(step.rows, threads_for(table.cols, 512));
    device.launch(&device.kernels.embed, grid, &params)
}
