//! Launches `lora_expand.cu`, or what serves a step or some of its segments better.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, to_u32};
use super::gemm::Gemm;
use super::lora::{LoraParams, PairEntry, Site, groups};
use super::lora_long::LongSegments;
use super::memory::Buf;
use super::step::{Run, Step};
use super::{lora_decode, lora_rows};

/// Threads of a block, an output column each.
const THREADS: u32 = 128;

pub fn lora_expand(
    (device, gemm): (&Device, &mut Gemm),
    h: &Buf,
    site: &Site,
    step: &Step,
    exchange: Exchange,
    y: &mut Buf,
) -> Result<()> {
    if site.len(step, exchange) == 0 {
        return Ok(());
    }
    if step.alike.is_some() {
        return lora_decode::expand(device, h, site, step, y);
    }
    let long = LongSegments::of(device, site, step, exchange);
    long.expand((device, gemm), h, (site, step), y)?;
    let short = step.segments.runs(|at| !long.has(at));
    short.iter().try_for_each(|run| expand_run(device, h, (site, step, run), exchange, y))
}

/// The same where some of the long segments are `done`, of pairs without an exchange.
pub fn expand_others(
    (device, gemm): (&Device, &mut Gemm),
    h: &Buf,
    (site, step): (&Site, &Step),
    (long, done): (&LongSegments<'_>, &LongSegments<'_>),
    y: &mut Buf,
) -> Result<()> {
    long.expand((device, gemm), h, (site, step), y)?;
    let short = step.segments.runs(|at| !long.has(at) && !done.has(at));
    short.iter().try_for_each(|run| expand_run(device, h, (site, step, run), Exchange::None, y))
}

fn expand_run(
    device: &Device,
    h: &Buf,
    (site, step, run): (&Site, &Step, &Run),
    exchange: Exchange,
    y: &mut Buf,
) -> Result<()> {
    if let Some(kernels) = lora_rows::serving(device, site, run, exchange) {
        return kernels.expand(device, h, (site, step, run), y);
    }
    let slots = site.pairs((step, run), exchange);
    let stride = slots.map(|pairs| pairs.map(room).sum()).max().unwrap_or(0);
    let width = site.shape.output();
    let params = LoraParams {
        y: y.address(device.dtype, step.rows * width),
        h: h.address(DType::F32, site.len(step, exchange)),
        width: to_u32(width),
        h_stride: to_u32(stride),
        ..site.params((step, run), exchange)
    };
    let (kernel, rows) = device.kernels.lora_expand.of(run);
    let columns = width.div_ceil(THREADS as usize);
    let blocks = (columns, run.segments.len(), groups(run));
    let grid = Grid::of_3(blocks, THREADS).shared(rows * stride * size_of::<f32>());
    device.launch(kernel, grid, &params)
}

/// Floats of shared memory that a row's shrunk activations take, one pair's.
fn room(pair: &PairEntry) -> usize {
    pair.expand_rank.next_multiple_of(4) as usize
}
