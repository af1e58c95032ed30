//! Products with what adapters add: where these are launches of their own, which of them come
//! first, and what they share with the norm behind them.

use contract::adapter::Exchange;

use crate::error::Result;
use crate::ops::Ops;

use super::Cuda;
use super::gemm::{Form, Operands};
use super::gemm_stream::ROWS_ANY;
use super::lora::Site;
use super::lora_decode;
use super::lora_long_norm::lora_expand_norm;
use super::memory::Buf;
use super::step::Step;
use super::weight::Weight;

/// Lora ranks of one pair up to which products of decode stream without what they add, and expand
/// comes behind them. Measured are 16, where that is faster, and 64, where it is not.
const NARROW_RANK_MAX: usize = 32;

/// Rows from which on a product adds to the residual stream itself: the norm behind it then moves
/// half as much. With fewer rows, that is not what it takes its time for.
pub const SUM_ROWS_MIN: usize = 512;

impl Cuda {
    /// `out = x weight^T + bias` and what adapters add, in one launch where that is possible.
    pub(super) fn adapted_product(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (site, step, h): (&Site, &Step, &mut Buf),
        out: &mut Buf,
    ) -> Result<()> {
        let mut operands = Operands { x, weight, bias, out: &mut *out };
        let (form, adapters) = (Form::of(step.rows), (site, step, &mut *h));
        if self.gemm.stream_adapted(&self.device, form, &mut operands, adapters)?.is_some() {
            return Ok(());
        }
        self.adapted_gemm_apart(x, (weight, bias), (site, step, h), out)
    }

    /// `out = x weight^T + bias` and what adapters add, by launches of their own. In decode, expand
    /// of larger lora ranks comes before the product, which adds to what it wrote: beside shrink
    /// it finds room to bring its first columns of B, beside cuBLASLt's product it does not.
    fn adapted_gemm_apart(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (site, step, h): (&Site, &Step, &mut Buf),
        out: &mut Buf,
    ) -> Result<()> {
        let (loaded, wide) = (site.decode.tiles() > 0, site.decode.staged() > NARROW_RANK_MAX);
        let ahead = loaded && wide && step.rows > ROWS_ANY;
        if let Some(all) = step.segments.all.filter(|_| ahead) {
            self.lora_shrink(x, site, step, Exchange::None, h)?;
            lora_decode::expand_ahead(&self.device, h, (site, step, all), out)?;
            let operands = Operands { x, weight, bias, out };
            return self.gemm.add_large(&self.device, step.rows, operands);
        }
        self.gemm_and_shrink(x, (weight, bias), (site, step, &mut *h), out)?;
        self.lora_expand(h, site, step, Exchange::None, out)
    }

    /// `out = x weight^T + bias` and `h = x A^T`. In decode, shrink comes behind a product that
    /// streams, its first loads beside the product's last, but only of small lora ranks: of larger
    /// ones the product had better be cuBLASLt's (docs/performance.md).
    pub(super) fn gemm_and_shrink(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (site, step, h): (&Site, &Step, &mut Buf),
        out: &mut Buf,
    ) -> Result<()> {
        let mut operands = Operands { x, weight, bias, out };
        let narrow = step.alike.is_some() && site.decode.staged() <= NARROW_RANK_MAX;
        let form = Form::of(step.rows);
        if narrow && self.gemm.stream(&self.device, form, &mut operands, None)?.is_some() {
            return self.lora_shrink(x, site, step, Exchange::None, h);
        }
        self.lora_shrink(x, site, step, Exchange::None, h)?;
        match step.rows <= ROWS_ANY {
            true => self.gemm.run(&self.device, step.rows, operands),
            false => self.gemm.run_large(&self.device, step.rows, operands),
        }
    }

    /// A product whose result the residual stream takes up, and the norm behind it.
    pub(super) fn adapted_add_norm(
        &mut self,
        x: &Buf,
        (weight, bias): (&Weight, Option<&Weight>),
        (site, step, h): (&Site, &Step, &mut Buf),
        (residual, norm, eps): (&mut Buf, &Weight, f32),
        hidden: &mut Buf,
    ) -> Result<()> {
        if step.rows >= SUM_ROWS_MIN {
            self.lora_shrink(x, site, step, Exchange::None, h)?;
            let operands = Operands { x, weight, bias, out: &mut *residual };
            self.gemm.add_large(&self.device, step.rows, operands)?;
            let (tools, norm) = ((&*self.device, &mut self.gemm), (residual, norm, eps));
            return lora_expand_norm(tools, h, (site, step), norm, hidden);
        }
        let (adapters, halved) = (Some((site, step, &mut *h)), (&*residual, norm, eps));
        if self.share_norm(x, (weight, bias), adapters, halved, step.rows, hidden)? {
            return Ok(());
        }
        self.adapted_gemm(x, (weight, bias), (site, step, h), hidden)?;
        self.add_rms_norm(residual, norm, eps, step.rows, hidden)
    }

    /// A gate and what it lets through, each with what adapters add, and the activation.
    pub(super) fn adapted_gated(
        &mut self,
        x: &Buf,
        (weight, width): (&Weight, usize),
        (site, step, h): (&Site, &Step, &mut Buf),
        gate_up: &mut Buf,
        out: &mut Buf,
    ) -> Result<()> {
        let mut operands = Operands { x, weight, bias: None, out: &mut *out };
        let adapters = (site, step, &mut *h);
        let form = Form { norm: self.factors.left(), ..Form::gated(step.rows) };
        if self.gemm.stream_adapted(&self.device, form, &mut operands, adapters)?.is_some() {
            self.factors.are_used();
            return Ok(());
        }
        self.finish_norm()?;
        self.gemm_and_shrink(x, (weight, None), (site, step, &mut *h), gate_up)?;
        self.lora_expand_silu_mul(h, site, step, (gate_up, width), out)
    }
}
