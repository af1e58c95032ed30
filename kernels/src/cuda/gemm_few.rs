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
    pub padding: u32,
}

const _: () = assert!(size_of::<GemmFewParams>() == 48);

/// Rows that the kernels take.
const ROWS_MAX: usize = 8;

/// Weights up to here come to the cache while the kernel before finishes; of larger ones cuBLASLt
/// uses more of the bandwidth (docs/performance.md).
const WEIGHT_BYTES_MAX: usize = 24 << 20;

/// Inputs that a lane reads at once.
const INPUTS: usize = 8;

/// Blocks that make it worth while to give each twice as many outputs: nearly one a multiprocessor
/// of the cards that there are.
const BLOCKS_MIN: usize = 96;

/// The kernels, by outputs of a block (16, 32).
type ByOutputs = [Kernel<GemmFewParams>; 2];

/// The kernels, by type of the result.
pub struct GemmFew {
    element: ByOutputs,
    full: ByOutputs,
}

impl GemmFew {
    /// `None` where they are not compiled.
    pub fn new(programs: &Programs) -> Result<Option<Self>> {
        if programs.module("gemm_few").is_none() {
            return Ok(None);
        }
        let one = |name| Kernel::new(programs, "gemm_few", name);
        let element = [one("gemm_few_16")?, one("gemm_few_32")?];
        let full = [one("gemm_few_16_full")?, one("gemm_few_32_full")?];
        Ok(Some(Self { element, full }))
    }

    /// Whether a product is one for these kernels.
    pub fn takes(rows: usize, inputs: usize, outputs: usize) -> bool {
        let bytes = inputs * outputs * DType::Bf16.bytes();
        rows <= ROWS_MAX && inputs.is_multiple_of(INPUTS) && bytes <= WEIGHT_BYTES_MAX
    }

    pub fn launch(&self, device: &Device, out: DType, params: &GemmFewParams) -> Result<()> {
        let outputs = params.outputs as usize;
        let [narrow, wide] = if out == device.dtype { &self.element } else { &self.full };
        let (kernel, each, threads) = match outputs.div_ceil(32) >= BLOCKS_MIN {
            true => (wide, 32, 256),
            false => (narrow, 16, 512),
        };
        device.launch(kernel, Grid::of(outputs.div_ceil(each), threads), params)
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
            padding: 0,
        }
    }
}
