//! Launches `lora_shrink.cu`, or what serves a step or some of its segments better.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::beside::Shrink;
use super::device::{Device, Grid, to_u32};
use super::gemm::Gemm;
use super::lora::{LoraParams, PairEntry, Site, groups};
use super::lora_long::LongSegments;
use super::memory::Buf;
use super::step::{Run, Step};
use super::{lora_decode, lora_rows};

/// Threads of a block, and rows of A that it takes.
const THREADS: u32 = 256;
const TILE: u32 = 4;

pub fn lora_shrink(
    (device, gemm): (&Device, &mut Gemm),
    x: &Buf,
    site: &Site,
    step: &Step,
    exchange: Exchange,
    h: &mut Buf,
) -> Result<()> {
    if site.len(step, exchange) == 0 {
        return Ok(());
    }
    if step.alike.is_some() {
        return lora_decode::shrink(device, x, (site, step), h, Shrink::Before);
    }
    let long = LongSegments::of(device, site, step, exchange);
    long.shrink((device, gemm), x, (site, step), h)?;
    let short = step.segments.runs(|at| !long.has(at));
    short.iter().try_for_each(|run| shrink_run(device, x, (site, step, run), exchange, h))
}

fn shrink_run(
    device: &Device,
    x: &Buf,
    (site, step, run): (&Site, &Step, &Run),
    exchange: Exchange,
    h: &mut Buf,
) -> Result<()> {
    if let Some(kernels) = lora_rows::serving(device, site, run, exchange) {
        return kernels.shrink(device, x, (site, step, run), h);
    }
    let params = LoraParams {
        x: x.address(device.dtype, step.rows * site.shape.input),
        h: h.address(DType::F32, site.len(step, exchange)),
        width: to_u32(site.shape.input),
        ..site.params((step, run), exchange)
    };
    let slots = site.pairs((step, run), exchange);
    let tiles = slots.map(|pairs| pairs.map(tiles).sum()).max().unwrap_or(0);
    let (kernel, _) = device.kernels.lora_shrink.of(run);
    let blocks = (tiles, run.segments.len(), groups(run));
    device.launch(kernel, Grid::of_3(blocks, THREADS), &params)
}

/// Blocks of threads that one pair takes; none straddles two diagonal blocks.
fn tiles(pair: &PairEntry) -> usize {
    ((pair.shrink_rank / pair.a_blocks).div_ceil(TILE) * pair.a_blocks) as usize
}
