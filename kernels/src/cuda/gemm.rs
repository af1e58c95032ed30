//! `out = x weight^T (+ bias)`: few rows by `gemm_stream.rs`, others by cuBLASLt, with a plan kept
//! for every shape met.
//!
//! Asking cuBLASLt for an algorithm takes longer than a small product, so the answer is kept; the
//! workspace is ours, so that a product can be captured in a graph.

mod algorithm;
mod plan;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use contract::tensor::DType;
use cudarc::cublaslt::{result, sys};

use crate::error::Result;

use super::beside::{Adapters, Shrink};
use super::device::Device;
use super::factors::Norm;
use super::gemm_stream::Size;
use super::lora::Site;
use super::lora_decode;
use super::memory::{Buf, Memory};
use super::round::round;
use super::status::During;
use super::step::Step;
use super::weight::Weight;

use plan::Plan;

pub use plan::Addresses;

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Bytes of a word that one kernel says to the next, or by which the blocks of one divide their
/// work (`chain.cuh`); and words, more than there are products at work or waiting for those before,
/// of which a multiprocessor has room for one.
const WORD_BYTES: usize = 16;
const WORDS: usize = 1024;

/// Plans kept at most. Decode meets few row counts, prefill any; when full, all are forgotten.
const PLANS_MAX: usize = 4096;

/// Bytes at whose multiples weights and activations start, and cuBLASLt's own default.
const ALIGNMENT: u32 = 256;

/// What a plan is made for: a product, or several of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// How many there are.
    pub batch: usize,
    pub x_stride: Stride,
    pub weight_stride: Stride,
    pub out_stride: Stride,
    /// Of `x` and the weight.
    pub held: DType,
    /// Of `out` and the bias.
    pub out: DType,
    pub bias: bool,
    /// Whether it is added to what `out` holds.
    pub adds: bool,
    /// Bytes at whose multiples all operands start.
    pub alignment: u32,
}

/// Elements from one row of an operand to the next, and from one product of a batch to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stride {
    pub row: usize,
    pub matrix: usize,
}

impl Stride {
    /// Of an operand whose rows lie close together.
    fn dense(row: usize) -> Self {
        Self { row, matrix: 0 }
    }
}

/// The operands of one product.
pub struct Operands<'a> {
    pub x: &'a Buf,
    pub weight: &'a Weight,
    pub bias: Option<&'a Weight>,
    pub out: &'a mut Buf,
}

/// Rows of a product that streams, parts of its weight, splits of its inputs ([`Size`]), and its
/// own part in a norm.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub rows: usize,
    pub parts: usize,
    pub splits: usize,
    pub norm: Norm,
}

impl Form {
    /// Of one part and not split, that has no part in a norm.
    pub fn of(rows: usize) -> Self {
        Self { rows, parts: 1, splits: 1, norm: Norm::Whole }
    }

    /// Of a gate and what it lets through.
    pub fn gated(rows: usize) -> Self {
        Self { parts: 2, ..Self::of(rows) }
    }
}

/// cuBLASLt, and the plans made so far.
pub struct Gemm {
    plans: HashMap<Shape, Plan>,
    workspace: Memory,
    /// Where products hear that their adapters' input is there, or divide their shrink, each in its
    /// turn.
    words: Memory,
    turn: usize,
    /// An operand that was f32. It grows when a product needs more.
    rounded: Memory,
    handle: sys::cublasLtHandle_t,
}

// SAFETY: the handle and the plans are cuBLASLt's own and bound to no thread.
unsafe impl Send for Gemm {}

impl Gemm {
    pub fn new(device: &Device) -> Result<Self> {
        let workspace = Memory::zeroed(&device.stream, WORKSPACE_BYTES, "a workspace")?;
        let handle = result::create_handle().during("creating its handle")?;
        let words = Memory::zeroed(&device.stream, WORDS * WORD_BYTES, "a workspace")?;
        let rounded = Memory::zeroed(&device.stream, 0, "an operand")?;
        Ok(Self { plans: HashMap::new(), workspace, words, turn: 0, rounded, handle })
    }

    /// One product, by what is faster for so many rows.
    pub fn run(&mut self, device: &Device, rows: usize, mut operands: Operands<'_>) -> Result<()> {
        match self.stream(device, Form::of(rows), &mut operands, None)? {
            Some(_) => Ok(()),
            None => self.run_large(device, rows, operands),
        }
    }

    /// The same by cuBLASLt, whatever the rows.
    pub fn run_large(
        &mut self,
        device: &Device,
        rows: usize,
        operands: Operands<'_>,
    ) -> Result<()> {
        self.multiply(device, rows, operands, false)
    }

    /// The same, added to what `out` holds.
    pub fn add_large(
        &mut self,
        device: &Device,
        rows: usize,
        operands: Operands<'_>,
    ) -> Result<()> {
        self.multiply(device, rows, operands, true)
    }

    fn multiply(
        &mut self,
        device: &Device,
        rows: usize,
        mut operands: Operands<'_>,
        adds: bool,
    ) -> Result<()> {
        let Operands { weight, bias, .. } = operands;
        let (inputs, outputs, out) = (weight.cols, weight.rows, operands.out.dtype());
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let shape = Shape {
            rows,
            inputs,
            outputs,
            batch: 1,
            x_stride: Stride::dense(inputs),
            weight_stride: Stride::dense(inputs),
            out_stride: Stride::dense(outputs),
            held: device.dtype,
            out,
            bias: bias.is_some(),
            adds,
            alignment: ALIGNMENT,
        };
        let addresses = operands.addresses(device, rows, rows * outputs);
        self.launch(device, &shape, &addresses)
    }

    /// A product of cuBLASLt; the plan is made where this shape was not met before.
    pub fn launch(&mut self, device: &Device, shape: &Shape, addresses: &Addresses) -> Result<()> {
        device.context.bind_to_thread().during("binding its context")?;
        if self.plans.len() >= PLANS_MAX {
            self.plans.clear();
        }
        let plan = match self.plans.entry(*shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let what = format!("planning {shape:?}");
                new.insert(Plan::new(self.handle, shape, WORKSPACE_BYTES).during(&what)?)
            }
        };
        let launched = plan.launch(self.handle, &device.stream, &self.workspace, addresses);
        launched.during("launching a product")
    }

    /// The product by `gemm_stream.rs`, with what adapters add, where it takes it: of two parts, a
    /// gate and what it lets through, `out = silu(x gate^T) * (x up^T)`; of several splits, whoever
    /// reads `out` adds them up. Returns in how many blocks; `None` if it does not.
    pub fn stream(
        &self,
        device: &Device,
        form: Form,
        operands: &mut Operands<'_>,
        adapters: Option<&Adapters<'_>>,
    ) -> Result<Option<usize>> {
        let size = operands.size(form);
        let takes = operands.streams(device, &size, adapters);
        let Some(kernels) = device.kernels.gemm_stream.as_ref().filter(|_| takes) else {
            return Ok(None);
        };
        let addresses =
            operands.addresses(device, form.rows, form.splits * form.rows * size.outputs);
        let out = operands.out.dtype();
        kernels.launch(device, out, &addresses, size, adapters).map(Some)
    }

    /// [`Self::stream`] with what adapters add, beside their shrink or behind it, `h` being theirs.
    pub fn stream_adapted(
        &mut self,
        device: &Device,
        form: Form,
        operands: &mut Operands<'_>,
        (site, step, h): (&Site, &Step, &mut Buf),
    ) -> Result<Option<usize>> {
        let word = self.words.address() + (self.turn * WORD_BYTES) as u64;
        let shrink = site.decode.shrink(form.rows, word);
        let adapters = Adapters { site, step, h: &*h, shrink };
        let size = operands.size(form);
        if !operands.streams(device, &size, Some(&adapters)) {
            return Ok(None);
        }
        self.turn = (self.turn + 1) % WORDS;
        if !matches!(shrink, Shrink::Within(_)) {
            lora_decode::shrink(device, operands.x, (site, step), h, shrink)?;
        }
        let adapters = Adapters { site, step, h: &*h, shrink };
        self.stream(device, form, operands, Some(&adapters))
    }

    /// One of the two.
    pub fn stream_either(
        &mut self,
        device: &Device,
        form: Form,
        operands: &mut Operands<'_>,
        adapters: Option<(&Site, &Step, &mut Buf)>,
    ) -> Result<Option<usize>> {
        match adapters {
            Some(adapters) => self.stream_adapted(device, form, operands, adapters),
            None => self.stream(device, form, operands, None),
        }
    }

    /// f32 values in the type that products take; they are there until the next call.
    pub fn round(&mut self, device: &Device, from: u64, elements: usize) -> Result<u64> {
        let bytes = elements * device.dtype.bytes();
        if self.rounded.bytes() < bytes {
            self.rounded = Memory::zeroed(&device.stream, bytes.next_power_of_two(), "an operand")?;
        }
        round(device, from, elements, self.rounded.address())?;
        Ok(self.rounded.address())
    }
}

impl Operands<'_> {
    fn size(&self, Form { rows, parts, splits, norm }: Form) -> Size {
        let (inputs, outputs) = (self.weight.cols, self.weight.rows / parts);
        Size { rows, inputs, outputs, parts, splits, norm }
    }

    /// Whether `gemm_stream.rs` takes it.
    fn streams(&self, device: &Device, size: &Size, adapters: Option<&Adapters<'_>>) -> bool {
        let plain = size.parts == 1 && !matches!(size.norm, Norm::TakenUp(_));
        let even = plain || size.outputs.is_multiple_of(8) && self.bias.is_none();
        let kernels = device.kernels.gemm_stream.as_ref();
        even && kernels.is_some_and(|kernels| kernels.takes(device, size, adapters))
    }

    fn addresses(&mut self, device: &Device, rows: usize, results: usize) -> Addresses {
        let out = self.out.dtype();
        Addresses {
            x: self.x.address(device.dtype, rows * self.weight.cols),
            weight: self.weight.elements(),
            bias: self.bias.map(|bias| bias.vector(out)),
            out: self.out.address(out, results),
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
