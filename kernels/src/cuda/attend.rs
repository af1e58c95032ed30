//! Queries, keys and values, and what they attend to: in decode, a small weight's product leaves it
//! to attention to add up the splits of its inputs.

use contract::tensor::DType;

use crate::error::Result;
use crate::ops::{Attend, Ops};

use super::Cuda;
use super::attention::{self, Fused};
use super::device::Device;
use super::gemm::{Form, Operands};
use super::gemm_stream::{GemmStream, ROWS_MAX, split_outputs_max};
use super::lora::Site;
use super::memory::Buf;
use super::step::Step;
use super::weight::Weight;

/// Room for the splits of any product.
pub fn splits(device: &Device) -> Result<Buf> {
    let elements = ROWS_MAX * split_outputs_max(device.processors);
    Buf::new(&device.stream, elements, DType::F32)
}

impl Cuda {
    /// Attention, which itself rotates where it can.
    pub(super) fn rope_attend(&mut self, step: &Step, attend: Attend<'_, Self>) -> Result<()> {
        let Attend { heads, table, cache, qkv, out } = attend;
        if !attention::rotates(&self.device, heads, step) {
            self.rope_kv_store(qkv, heads, table, step, cache)?;
            return self.attention(qkv, heads, step, cache, out);
        }
        let fused = Fused::Whole(qkv);
        let operands = attention::Operands { fused, table: Some(table), cache, out };
        attention::attention(&self.device, &mut self.scratch, heads, step, operands)
    }

    /// The product, with what adapters add, and attention.
    pub(super) fn project_and_attend(
        &mut self,
        x: &Buf,
        weight: (&Weight, Option<&Weight>),
        (step, mut adapters): (&Step, Option<(&Site, &mut Buf)>),
        mut attend: Attend<'_, Self>,
    ) -> Result<()> {
        let lent = adapters.as_mut().map(|(site, h)| (*site, &mut **h));
        if self.attend_in_splits(x, weight, (step, lent), &mut attend)? {
            return Ok(());
        }
        self.finish_norm()?;
        match adapters {
            Some((site, h)) => self.adapted_gemm(x, weight, (site, step, h), attend.qkv)?,
            None => self.gemm(x, weight.0, weight.1, step.rows, attend.qkv)?,
        }
        self.rope_attend(step, attend)
    }

    /// The product and attention, where both take splits. False if they do not.
    fn attend_in_splits(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (step, adapters): (&Step, Option<(&Site, &mut Buf)>),
        attend: &mut Attend<'_, Self>,
    ) -> Result<bool> {
        let Attend { heads, table, cache, out, .. } = attend;
        let splits = GemmStream::splits(&self.device, weight);
        if splits == 1 || !attention::rotates(&self.device, heads, step) {
            return Ok(false);
        }
        let form = Form { splits, norm: self.factors.left(), ..Form::of(step.rows) };
        let mut operands = Operands { x, weight, bias, out: &mut self.splits };
        let adapters = adapters.map(|(site, h)| (site, step, h));
        let streams = self.gemm.stream_either(&self.device, form, &mut operands, adapters)?;
        if streams.is_some() {
            self.factors.are_used();
            let fused = Fused::Splits(&self.splits, splits);
            let operands = attention::Operands { fused, table: Some(table), cache, out };
            attention::attention(&self.device, &mut self.scratch, heads, step, operands)?;
        }
        Ok(streams.is_some())
    }
}
