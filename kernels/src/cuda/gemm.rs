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

    pub fn run(&mut self, device: &Device, rows: usize, operands: Operands<'_>) -> Result<()> {
        let Operands { x, weight, bias, out } = operands;
        let (held, out_type) = (device.dtype, out.dtype());
        let (inputs, outputs) = (weight.cols, weight.rows);
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let bias = bias.map(|bias| bias.vector(out_type));
        let shape = Shape { rows, inputs, outputs, held, out: out_type, bias: bias.is_some() };
        let addresses = Addresses {
            x: x.address(held, rows * inputs),
            weight: weight.elements(),
            bias,
            out: out.address(out_type, rows * outputs),
        };
        if let Some(stream) = &device.kernels.gemm_stream
            && GemmStream::takes(rows, inputs)
        {
            let size = Size { rows, inputs, outputs, parts: 1 };
            return stream.launch(device, out_type, &addresses, size);
        }
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

/// `out = silu(x gate^T) * (x up^T)` for a weight that is a gate and what it lets through, if that
/// is one operation here; false if it is not.
pub fn gemm_silu_mul(device: &Device, rows: usize, operands: &mut Operands<'_>) -> Result<bool> {
    let Operands { x, weight, bias: None, out } = operands else { return Ok(false) };
    let (inputs, outputs) = (weight.cols, weight.rows / 2);
    let Some(stream) = &device.kernels.gemm_stream else { return Ok(false) };
    if rows == 0 || !GemmStream::takes(rows, inputs) || !outputs.is_multiple_of(8) {
        return Ok(false);
    }
    let addresses = Addresses {
        x: x.address(device.dtype, rows * inputs),
        weight: weight.elements(),
        bias: None,
        out: out.address(device.dtype, rows * outputs),
    };
    let size = Size { rows, inputs, outputs, parts: 2 };
    stream.launch(device, device.dtype, &addresses, size)?;
    Ok(true)
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
