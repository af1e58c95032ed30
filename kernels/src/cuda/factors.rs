//! The norm between two products of few rows, shared by both (`factors.cuh`): the first leaves
//! `hidden = residual * weight` and sums of squares, and the second multiplies its results by each
//! row's factor.

use contract::tensor::DType;

use crate::error::Result;
use crate::ops::Ops;

use super::Cuda;
use super::adapted::SUM_ROWS_MIN;
use super::device::{Device, to_u32};
use super::gemm::{Form, Operands};
use super::gemm_stream::ROWS_MAX;
use super::lora::Site;
use super::memory::{Buf, Memory};
use super::rms_norm::{RmsNormParams, launch};
use super::step::Step;
use super::weight::Weight;

/// Blocks that have some of a row's outputs, at most.
pub const SQUARES_MAX: usize = 160;

/// What a product does of the norm behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TakenUpParams {
    residual: u64,
    weight: u64,
    squares: u64,
}

/// What that leaves to the product behind the norm.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FactorsParams {
    squares: u64,
    count: u32,
    eps: f32,
}

const _: () = assert!(size_of::<TakenUpParams>() == 24 && size_of::<FactorsParams>() == 16);

/// A product's part in a norm.
#[derive(Clone, Copy, Debug, Default)]
pub enum Norm {
    /// None.
    #[default]
    Whole,
    /// The first half of the one behind it.
    TakenUp(TakenUpParams),
    /// The second half of the one before it.
    Factors(FactorsParams),
}

/// The first half of a norm, and what would do all of it.
#[derive(Clone, Copy)]
pub struct HalfNorm {
    pub taken_up: TakenUpParams,
    whole: RmsNormParams,
    rows: usize,
    eps: f32,
}

/// Sums of squares, and the norm that was left half done.
pub struct Factors {
    squares: Memory,
    left: Option<(FactorsParams, HalfNorm)>,
}

impl Factors {
    pub fn new(device: &Device) -> Result<Self> {
        let bytes = ROWS_MAX * SQUARES_MAX * size_of::<f32>();
        Ok(Self { squares: Memory::zeroed(&device.stream, bytes, "sums of squares")?, left: None })
    }

    /// For the product that reads what the last one wrote.
    pub fn left(&self) -> Norm {
        self.left.map_or(Norm::Whole, |(factors, _)| Norm::Factors(factors))
    }

    /// A product of so many blocks did the first half.
    pub fn leave(&mut self, half: HalfNorm, blocks: usize) {
        let squares = self.squares.address();
        let factors = FactorsParams { squares, count: to_u32(blocks), eps: half.eps };
        self.left = Some((factors, half));
    }

    /// A product did the second half.
    pub fn are_used(&mut self) {
        self.left = None;
    }
}

impl Cuda {
    /// A norm whose first half the product before it may do, in a step of decode, and whose other
    /// half is left to who reads `hidden`; to [`Self::finish_norm`] if that cannot do it. Of f16,
    /// `residual * weight` might be too large.
    fn half_norm(
        &self,
        (residual, weight, eps): (&Buf, &Weight, f32),
        rows: usize,
        hidden: &Buf,
    ) -> Option<HalfNorm> {
        let dtype = self.device.dtype;
        if !self.graphs.serve || dtype != DType::Bf16 || rows > ROWS_MAX {
            return None;
        }
        let elements = rows * weight.cols;
        let residual = residual.address(dtype, elements);
        let squares = self.factors.squares.address();
        let taken_up = TakenUpParams { residual, weight: weight.floats(), squares };
        let whole = RmsNormParams::new(residual, weight, eps, hidden.address(dtype, elements));
        Some(HalfNorm { taken_up, whole, rows, eps })
    }

    /// The product before a norm, with what adapters add, and the first half of it: where that is
    /// possible, else it does nothing and returns false.
    pub(super) fn share_norm(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        adapters: Option<(&Site, &Step, &mut Buf)>,
        norm: (&Buf, &Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<bool> {
        let Some(half) = self.half_norm(norm, rows, hidden) else { return Ok(false) };
        let mut operands = Operands { x, weight, bias, out: hidden };
        let form = Form { norm: Norm::TakenUp(half.taken_up), ..Form::of(rows) };
        let streams = self.gemm.stream_either(&self.device, form, &mut operands, adapters)?;
        if let Some(blocks) = streams {
            self.factors.leave(half, blocks);
        }
        Ok(streams.is_some())
    }

    /// A product whose result the residual stream takes up, and the norm behind it.
    pub(super) fn add_norm(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (residual, norm, eps): (&mut Buf, &Weight, f32),
        rows: usize,
        hidden: &mut Buf,
    ) -> Result<()> {
        if rows >= SUM_ROWS_MIN {
            let operands = Operands { x, weight, bias, out: &mut *residual };
            self.gemm.add_large(&self.device, rows, operands)?;
            return self.rms_norm(residual, norm, eps, rows, hidden);
        }
        let halved = (&*residual, norm, eps);
        if self.share_norm(x, (weight, bias), None, halved, rows, hidden)? {
            return Ok(());
        }
        self.gemm(x, weight, bias, rows, hidden)?;
        self.add_rms_norm(residual, norm, eps, rows, hidden)
    }

    /// Does what was left of a norm, if something was.
    pub(super) fn finish_norm(&mut self) -> Result<()> {
        match self.factors.left.take() {
            Some((_, half)) => launch(&self.device, half.rows, &half.whole),
            None => Ok(()),
        }
    }
}
