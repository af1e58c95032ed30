//! Launches `lora_shrink.cu`.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, to_u32};
use super::lora::{LoraParams, PairEntry, Site, groups};
use super::memory::Buf;
use super::step::Step;
use super::{lora_decode, lora_rows};

/// Threads of a block, and rows of A that it takes.
const THREADS: u32 = 256;
const TILE: u32 = 4;

pub fn lora_shrink(
    device: &Device,
    x: &Buf,
    site: &Site,
    step: &Step,
    exchange: Exchange,
    h: &mut Buf,
) -> Result<()> {
    let len = site.len(step, exchange);
    if len == 0 {
        return Ok(());
    }
    if step.alike.is_some() {
        return lora_decode::shrink(device, x, (site, step), h, None);
    }
    if let Some(kernels) = lora_rows::serving(device, site, step, exchange) {
        return kernels.shrink(device, x, (site, step), h);
    }
    let params = LoraParams {
        x: x.address(device.dtype, step.rows * site.shape.input),
        h: h.address(DType::F32, len),
        width: to_u32(site.shape.input),
        ..site.params(step, exchange)
    };
    let slots = site.pairs(step, exchange);
    let tiles = slots.map(|pairs| pairs.map(tiles).sum()).max().unwrap_or(0);
    let (kernel, _) = device.kernels.lora_shrink.of(step);
    let blocks = (tiles, step.segments.entries.len(), groups(step));
    device.launch(kernel, Grid::of_3(blocks, THREADS), &params)
}

/// Blocks of threads that one pair takes; none straddles two diagonal blocks.
fn tiles(pair: &PairEntry) -> usize {
    ((pair.shrink_rank / pair.a_blocks).div_ceil(TILE) * pair.a_blocks) as usize
}
