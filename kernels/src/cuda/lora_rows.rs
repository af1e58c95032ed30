//! Launches `lora_rows.cu`: shrink and expand of prefill on tensor cores.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, Kernel, to_u32};
use super::lora::{LoraParams, Site};
use super::memory::Buf;
use super::program::Programs;
use super::step::{Run, Step};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraRowsParams {
    lora: LoraParams,
    shrink: u64,
    x: u64,
    width: u32,
    shrink_tiles: u32,
}

const _: () = assert!(size_of::<LoraRowsParams>() == 96);

/// Threads of a block.
const THREADS: u32 = 256;

/// What a block of shrink takes: rows, and tiles of lora ranks.
const SHRINK_ROWS: usize = 32;
const SHRINK_GROUPS: usize = 6;

/// What a block of expand takes: rows, and tiles of output columns, in which every pair starts and
/// ends.
const EXPAND_ROWS: usize = 128;
const EXPAND_TILES: usize = 4;
pub const COLUMNS: usize = 64;

/// Rows of a segment from which on tensor cores are worth it.
const ROWS_MIN: u32 = 16;

/// Both kernels.
pub struct LoraRows {
    shrink: Kernel<LoraRowsParams>,
    expand: Kernel<LoraRowsParams>,
}

impl LoraRows {
    /// `None` where they are not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let file = "lora_rows";
        if programs.module(file).is_none() {
            return Ok(None);
        }
        let shrink = Kernel::new(programs, file, "lora_rows_shrink")?;
        Ok(Some(Self { shrink, expand: Kernel::new(programs, file, "lora_rows_expand")? }))
    }
}

/// The kernels, if they serve these segments at this site.
pub fn serving<'a>(
    device: &'a Device,
    site: &Site,
    run: &Run,
    exchange: Exchange,
) -> Option<&'a LoraRows> {
    let many = run.rows_max >= ROWS_MIN && exchange == Exchange::None;
    device.kernels.lora_rows.as_ref().filter(|_| many && site.decode.all.even)
}

impl LoraRows {
    pub fn shrink(
        &self,
        device: &Device,
        x: &Buf,
        (site, step, run): (&Site, &Step, &Run),
        h: &mut Buf,
    ) -> Result<()> {
        let lora = LoraParams {
            h: h.address(DType::F32, site.len(step, Exchange::None)),
            ..site.params((step, run), Exchange::None)
        };
        let x = x.address(device.dtype, step.rows * site.shape.input);
        let params = params(lora, site, x, site.shape.input);
        let rows = (run.rows_max as usize).div_ceil(SHRINK_ROWS);
        let groups = site.decode.tiles().div_ceil(SHRINK_GROUPS);
        let grid = Grid::of_3((rows, run.segments.len(), groups), THREADS);
        device.launch(&self.shrink, grid, &params)
    }

    pub fn expand(
        &self,
        device: &Device,
        h: &Buf,
        (site, step, run): (&Site, &Step, &Run),
        y: &mut Buf,
    ) -> Result<()> {
        let width = site.shape.output();
        let lora = LoraParams {
            y: y.address(device.dtype, step.rows * width),
            h: h.address(DType::F32, site.len(step, Exchange::None)),
            ..site.params((step, run), Exchange::None)
        };
        let params = params(lora, site, 0, width);
        let rows = (run.rows_max as usize).div_ceil(EXPAND_ROWS);
        let blocks = (width.div_ceil(COLUMNS * EXPAND_TILES), run.segments.len(), rows);
        device.launch(&self.expand, Grid::of_3(blocks, THREADS), &params)
    }
}

fn params(lora: LoraParams, site: &Site, x: u64, width: usize) -> LoraRowsParams {
    LoraRowsParams {
        lora,
        shrink: site.decode.address(),
        x,
        width: to_u32(width),
        shrink_tiles: to_u32(site.decode.tiles()),
    }
}
