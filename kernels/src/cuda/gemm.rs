//! `out = x weight^T (+ bias)`: few rows by `gemm_stream.cu`, others by cuBLASLt, with a plan kept
//! for every shape met.
//!
//! Asking cuBLASLt for an algorithm takes longer than a small product, so the answer is kept; the
//! workspace is ours, so that a product can be captured in a graph.

mod plan;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use contract::tensor::DType;
use cudarc::cublaslt::{result, sys};

use crate::error::Result;

use super::device::Device;
use super::gemm_stream::{GemmStream, Size};
use super::memory::{Buf, Memory};
use super::status::During;
use super::weight::Weight;

use plan::Plan;

pub use plan::Addresses;

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Plans kept at most. Decode meets few row counts, prefill any; when full, all are forgotten.
const PLANS_MAX: usize = 4096;

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// Of `x` and the weight.
    held: DType,
    /// Of `out` and the bias.
    out: DType,
    bias: bool,
}

/// The operands of one product.
pub struct Operands<'a> {
    pub x: &'a Buf,
    pub weight: &'a Weight,
    pub bias: Option<&'a Weight>,
    pub out: &'a mut Buf,
}

/// cuBLASLt, and the plans made so far.
pub struct Gemm {
    plans: HashMap<Shape, Plan>,
    workspace: Memory,
    handle: sys::cublasLtHandle_t,
}

// SAFETY: the handle and the plans are cuBLASLt's own and bound to no thread.
unsafe impl Send for Gemm {}

impl Gemm {
    pub fn new(device: &Device) -> Result<Self> {
        let workspace = Memory::zeroed(&device.stream, WORKSPACE_BYTES, "a workspace")?;
        let handle = result::create_handle().during("creating its handle")?;
        Ok(Self { plans: HashMap::new(), workspace, handle })
    }

    pub fn run(&mut self, device: &Device, rows: usize, mut operands: Operands<'_>) -> Result<()> {
        let Operands { weight, bias, .. } = operands;
        let (inputs, outputs, out) = (weight.cols, weight.rows, operands.out.dtype());
        if rows == 0 || outputs == 0 || stream(device, (rows, 1), &mut operands)? {
            return Ok(());
        }
        let shape = Shape { rows, inputs, outputs, held: device.dtype, out, bias: bias.is_some() };
        let addresses = operands.addresses(device, (rows, outputs));
        device.context.bind_to_thread().during("binding its context")?;
        if self.plans.len() >= PLANS_MAX {
            self.plans.clear();
        }
        let plan = match self.plans.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let what = format!("planning {shape:?}");
                new.insert(Plan::new(self.handle, &shape, WORKSPACE_BYTES).during(&what)?)
            }
        };
        let launched = plan.launch(self.handle, &device.stream, &self.workspace, &addresses);
        launched.during("launching a product")
    }
}

impl Operands<'_> {
    fn addresses(&mut self, device: &Device, (rows, outputs): (usize, usize)) -> Addresses {
        let out = self.out.dtype();
        Addresses {
            x: self.x.address(device.dtype, rows * self.weight.cols),
            weight: self.weight.elements(),
            bias: self.bias.map(|bias| bias.vector(out)),
            out: self.out.address(out, rows * outputs),
        }
    }
}

/// The product by `gemm_stream.cu`, where it takes it: of two parts, a gate and what it lets
/// through, `out = silu(x gate^T) * (x up^T)`. False if it does not.
pub fn stream(
    device: &Device,
    (rows, parts): (usize, usize),
    operands: &mut Operands<'_>,
) -> Result<bool> {
    let (inputs, outputs) = (operands.weight.cols, operands.weight.rows / parts);
    let even = parts == 1 || outputs.is_multiple_of(8) && operands.bias.is_none();
    let takes = rows > 0 && even && GemmStream::takes(rows, inputs);
    let Some(kernels) = device.kernels.gemm_stream.as_ref().filter(|_| takes) else {
        return Ok(false);
    };
    let addresses = operands.addresses(device, (rows, outputs));
    let size = Size { rows, inputs, outputs, parts };
    kernels.launch(device, operands.out.dtype(), &addresses, size)?;
    Ok(true)
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
