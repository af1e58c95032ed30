//! Launches `gemm_few.cu`: products of few rows, where cuBLASLt leaves bandwidth unused.

use contract::tensor::DType;

use crate::error::Result;

use super::device::{Device, Grid, Kernel, to_u32};
use super::program::Programs;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmFewParams {
    pub x: u64,
    pub weight: u64,
    /// 0 is none.
    pub bias: u64,
    pub out: u64,
    pub rows: u32,
    pub inputs: u32,
    pub outputs: u32,
    /// Inputs of a warp that it has brought to the cache before its turn.
    pub ahead: u32,
}

const _: () = assert!(size_of::<GemmFewParams>() == 48);

/// Rows that the kernels take, by group of 8.
pub const ROWS_MAX: usize = 16;

/// Inputs that a lane reads at once.
const INPUTS: usize = 8;

/// Weights that a product has brought to the cache while it waits for the kernel before it: half of
/// what the cards that there are hold.
const CACHE_BYTES: usize = 24 << 20;

/// Blocks that make it worth while to give each twice as many outputs: nearly one a multiprocessor
/// of the cards that there are.
const BLOCKS_MIN: usize = 96;

/// Kernels by outputs of a block (16, 32) and by groups of rows (1, 2).
type ByShape = [[Kernel<GemmFewParams>; 2]; 2];

/// The kernels, by type of the result.
pub struct GemmFew {
    element: ByShape,
    full: ByShape,
}

impl GemmFew {
    /// `None` where they are not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        if programs.module("gemm_few").is_none() {
            return Ok(None);
        }
        let one = |name| Kernel::new(programs, "gemm_few", name);
        let element = [
            [one("gemm_few_16_1")?, one("gemm_few_16_2")?],
            [one("gemm_few_32_1")?, one("gemm_few_32_2")?],
        ];
        let full = [
            [one("gemm_few_16_1_full")?, one("gemm_few_16_2_full")?],
            [one("gemm_few_32_1_full")?, one("gemm_few_32_2_full")?],
        ];
        Ok(Some(Self { element, full }))
    }

    /// Whether a product is one for these kernels.
    pub fn takes(rows: usize, inputs: usize) -> bool {
        rows <= ROWS_MAX && inputs.is_multiple_of(INPUTS)
    }

    pub fn launch(&self, device: &Device, out: DType, params: &GemmFewParams) -> Result<()> {
        let outputs = params.outputs as usize;
        let wide = usize::from(outputs.div_ceil(32) >= BLOCKS_MIN);
        let groups = params.rows.div_ceil(8) as usize;
        let kernels = if out == device.dtype { &self.element } else { &self.full };
        let (each, threads, share) = if wide == 1 { (32, 256, 2) } else { (16, 512, 1) };
        let blocks = outputs.div_ceil(each);
        let input_bytes =
            blocks.min(share * device.processors) * each * (threads as usize / 32) * 2;
        let ahead = to_u32(CACHE_BYTES / input_bytes / INPUTS * INPUTS);
        let params = GemmFewParams { ahead, ..*params };
        device.launch(&kernels[wide][groups - 1], Grid::of(blocks, threads), &params)
    }
}

impl GemmFewParams {
    /// Operands at these addresses.
    pub fn new(
        at: &super::gemm::Addresses,
        (rows, inputs, outputs): (usize, usize, usize),
    ) -> Self {
        Self {
            x: at.x,
            weight: at.weight,
            bias: at.bias.unwrap_or(0),
            out: at.out,
            rows: to_u32(rows),
            inputs: to_u32(inputs),
            outputs: to_u32(outputs),
            ahead: 0,
        }
    }
}
