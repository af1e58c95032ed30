//! Launches `lora_long_norm.cu`: expand of long segments to a row of the residual stream, and the
//! norm behind it. What it does not take is expanded, and then normalised.

use contract::adapter::Exchange;
use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, Kernel, in_launches, to_u32};
use super::gemm::Gemm;
use super::lora::Site;
use super::lora_expand::expand_others;
use super::lora_gated::gaps;
use super::lora_long::{Long, LongSegments};
use super::lora_long_expand::LongExpand;
use super::memory::Buf;
use super::program::{Programs, SHARED_BYTES_ANYWHERE};
use super::rms_norm::rms_norm;
use super::step::Step;
use super::weight::Weight;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct LoraLongNormParams {
    rows: NormedRows,
    entries: [LongExpand; ENTRIES_MAX],
}

/// What all entries of a launch have in common.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormedRows {
    h: u64,
    residual: u64,
    weight: u64,
    hidden: u64,
    width: u32,
    eps: f32,
}

const _: () = assert!(size_of::<LoraLongNormParams>() == 1320);

/// Entries of a launch, at most.
const ENTRIES_MAX: usize = 32;

/// Lora rank of a pair, at most: more of B than that is too much to bring for every few rows.
const RANK_MAX: usize = 16;

/// Columns of a warp, and of a block.
const COLUMNS: usize = 128;
const BLOCK_COLUMNS: usize = COLUMNS * THREADS as usize / 32;

/// Threads of a block, rows that a cluster of them takes, and shared memory of a block.
const THREADS: u32 = 256;
const ROWS: usize = 16;
const SHARED_BYTES: usize = 34896;

const _: () = assert!(SHARED_BYTES <= SHARED_BYTES_ANYWHERE);

/// Kernels by the blocks of a cluster.
const BY_BLOCKS: [(usize, &str); 4] = [
    (1, "lora_long_norm_1"),
    (2, "lora_long_norm_2"),
    (4, "lora_long_norm_4"),
    (8, "lora_long_norm_8"),
];

/// The kernels.
pub struct LoraLongNorm(Vec<OfCluster>);

/// A kernel, and the blocks of its clusters.
struct OfCluster {
    kernel: Kernel<LoraLongNormParams>,
    blocks: usize,
}

impl LoraLongNorm {
    /// `None` where it is not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        let file = "lora_long_norm";
        if programs.module(file).is_none() {
            return Ok(None);
        }
        let kernel = |(blocks, name)| {
            let kernel = Kernel::new(programs, file, name)?.allow_shared(SHARED_BYTES)?;
            Ok(OfCluster { kernel, blocks })
        };
        Ok(Some(Self(BY_BLOCKS.into_iter().map(kernel).collect::<Result<_>>()?)))
    }

    /// The kernel whose clusters have whole rows.
    fn of(&self, width: usize) -> Option<&OfCluster> {
        let whole =
            |blocks: usize| width.is_multiple_of(COLUMNS) && width <= blocks * BLOCK_COLUMNS;
        self.0.iter().find(|it| whole(it.blocks))
    }
}

impl OfCluster {
    fn launch(&self, device: &Device, rows: NormedRows, entries: &[LongExpand]) -> Result<()> {
        in_launches(entries, |entries, some| {
            let most = some.iter().map(|entry| entry.rows as usize).max().unwrap_or(0);
            let grid = Grid::of_3((most.div_ceil(ROWS) * self.blocks, some.len(), 1), THREADS);
            let params = LoraLongNormParams { rows, entries };
            device.launch(&self.kernel, grid.shared(SHARED_BYTES), &params)
        })
    }
}

/// `residual += h B^T`, and then `hidden` is its norm, in steps of prefill.
pub fn lora_expand_norm(
    (device, gemm): (&Device, &mut Gemm),
    h: &Buf,
    (site, step): (&Site, &Step),
    (residual, norm, eps): (&mut Buf, &Weight, f32),
    hidden: &mut Buf,
) -> Result<()> {
    let (width, elements) = (norm.cols, step.rows * norm.cols);
    let kernel = device.kernels.lora_long_norm.as_ref().and_then(|kernels| kernels.of(width));
    let whole = |long: &Long<'_>| long.expands_whole(width, RANK_MAX);
    let long = LongSegments::of(device, site, step, Exchange::None);
    let (normed, others) = long.part(|long| kernel.is_some() && whole(long).is_some());
    if let Some(kernel) = kernel {
        let rows = NormedRows {
            h: h.address(DType::F32, site.len(step, Exchange::None)),
            residual: residual.address(device.dtype, elements),
            weight: norm.floats(),
            hidden: hidden.address(device.dtype, elements),
            width: to_u32(width),
            eps,
        };
        let entries: Vec<_> = normed.0.iter().filter_map(whole).collect();
        kernel.launch(device, rows, &entries)?;
    }
    expand_others((device, gemm), h, (site, step), (&others, &normed), residual)?;
    let rest = gaps(normed.0.iter().map(|long| long.row..long.row + long.rows), step.rows);
    rest.into_iter().try_for_each(|rows| rms_norm(device, residual, norm, eps, rows, hidden))
}
