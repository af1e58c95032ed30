//! `out = x weight^T (+ bias)` by cuBLASLt, with a plan kept for every shape met.
//!
//! cuBLASLt thinks in columns: row-major `out [rows, out]` is its `[out, rows]`, and so the weight
//! is its first operand, transposed, and `x` the second. Asking it for an algorithm takes longer
//! than a small product, so the answer is kept; the workspace is ours, so that a product can be
//! captured in a graph.

use std::collections::HashMap;
use std::ptr;

use contract::tensor::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use crate::error::Result;

use super::device::Device;
use super::memory::{Buf, Memory};
use super::status::During;
use super::weight::Weight;

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Plans kept at most. Decode meets few row counts, prefill any; when full, all are forgotten.
const PLANS_MAX: usize = 4096;

/// cuBLASLt, and the plans made so far.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    plans: HashMap<Shape, Plan>,
    workspace: Memory,
}

// SAFETY: the handle and the plans are cuBLASLt's own; only one thread at a time has them.
unsafe impl Send for Gemm {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    held: DType,
    out: DType,
    bias: bool,
}

/// Descriptors and the algorithm for one shape; freed on drop.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The operands of one product.
pub struct Operands<'a> {
    pub x: &'a Buf,
    pub weight: &'a Weight,
    pub bias: Option<&'a Weight>,
    pub out: &'a mut Buf,
}

impl Gemm {
    pub fn new(device: &Device) -> Result<Self> {
        let workspace = Memory::zeroed(&device.stream, WORKSPACE_BYTES, "a workspace")?;
        let handle = result::create_handle().during("creating its handle")?;
        Ok(Self { handle, plans: HashMap::new(), workspace })
    }

    pub fn run(&mut self, device: &Device, rows: usize, operands: Operands<'_>) -> Result<()> {
        let Operands { x, weight, bias, out } = operands;
        if rows == 0 || weight.rows == 0 {
            return Ok(());
        }
        let shape = Shape {
            rows,
            inputs: weight.cols,
            outputs: weight.rows,
            held: device.dtype,
            out: out.dtype(),
            bias: bias.is_some(),
        };
        let addresses = Addresses {
            x: x.address(device.dtype, rows * weight.cols),
            weight: weight.elements(),
            bias: bias.map(|bias| bias.as_type(shape.out)),
            out: out.address(shape.out, rows * weight.rows),
        };
        device.context.bind_to_thread().during("binding its context")?;
        let plan = self.plan(shape).during("planning a product")?;
        self.launch(device, plan, &addresses).during("launching a product")
    }

    fn plan(&mut self, shape: Shape) -> Result<*const Plan, CublasError> {
        if self.plans.len() >= PLANS_MAX {
            self.plans.clear();
        }
        if !self.plans.contains_key(&shape) {
            self.plans.insert(shape, Plan::new(self.handle, &shape)?);
        }
        Ok(&raw const self.plans[&shape])
    }
}
