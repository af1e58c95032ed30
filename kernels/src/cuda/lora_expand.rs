//! Launches `lora_expand.cu`.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, to_u32};
use super::lora::{LoraParams, PairEntry, Site, groups};
use super::memory::Buf;
use super::step::Step;
use super::{lora_decode, lora_rows};

/// Threads of a block, an output column each.
const THREADS: u32 = 128;

pub fn lora_expand(
    device: &Device,
    h: &Buf,
    site: &Site,
    step: &Step,
    exchange: Exchange,
    y: &mut Buf,
) -> Result<()> {
    let len = site.len(step, exchange);
    if len == 0 {
        return Ok(());
    }
    if step.alike.is_some() {
        return lora_decode::expand(device, h, site, step, y);
    }
    if let Some(kernels) = lora_rows::serving(device, site, step, exchange) {
        return kernels.expand(device, h, (site, step), y);
    }
    let slots = site.pairs(step, exchange);
    let stride = slots.map(|pairs| pairs.map(room).sum()).max().unwrap_or(0);
    let width = site.shape.output();
    let params = LoraParams {
        y: y.address(device.dtype, step.rows * width),
        h: h.address(DType::F32, len),
        width: to_u32(width),
        h_stride: to_u32(stride),
        ..site.params(step, exchange)
    };
    let (kernel, rows) = device.kernels.lora_expand.of(step);
    let columns = width.div_ceil(THREADS as usize);
    let blocks = (columns, step.segments.entries.len(), groups(step));
    let grid = Grid::of_3(blocks, THREADS).shared(rows * stride * size_of::<f32>());
    device.launch(kernel, grid, &params)
}

/// Floats of shared memory that a row's shrunk activations take, one pair's.
fn room(pair: &PairEntry) -> usize {
    pair.expand_rank.next_multiple_of(4) as usize
}
