//! Linear layers cut across ranks as in Megatron-LM (arXiv 1909.08053, section 3), adapters
//! included.
//!
//! An adapter's local pair is cut like the layer it adds to, so it adds no collective: a column
//! needs none, and in a row both partial sums go through the same all-reduce, which the residual
//! stream and the next norm are a part of ([`Pass::add_norm`]).

use collective::comm::Comm;
use contract::base::{Parallel, Projection};
use kernels::ops::{Attend, Ops};

use crate::error::Result;
use crate::loader::Loader;
use crate::lora::LoraSite;
use crate::pass::{Activations, NormWeights, Pass};
use crate::tensors::Tensor;

/// Cut along the output: the input is whole on every rank, and so needs no collective. Several
/// projections of one input are fused, their outputs side by side in a row.
pub struct ColumnLinear<O: Ops> {
    weight: O::Weight,
    bias: Option<O::Weight>,
    pub lora: LoraSite<O>,
}

impl<O: Ops> ColumnLinear<O> {
    pub fn load(
        loader: &mut Loader<'_, O>,
        layer: usize,
        projections: &'static [Projection],
    ) -> Result<Self> {
        debug_assert!(projections.iter().all(|p| p.parallel() == Parallel::Column));
        Ok(Self {
            weight: loader.linear(layer, projections)?,
            bias: loader.bias(layer, projections)?,
            lora: LoraSite::new(loader, projections)?,
        })
    }

    /// `y = x weight^T + bias + adapters`, this rank's columns.
    pub fn forward<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        y: &mut O::Buf,
    ) -> Result<()> {
        self.lora.gemm(pass, x, (&self.weight, self.bias.as_ref()), y)?;
        self.lora.exchange(pass, x, y)
    }
}

impl<O: Ops> ColumnLinear<O> {
    /// [`Self::forward`] of a gate and of what it lets through, `width` columns of each, and
    /// `out = silu(gate) * up`.
    pub fn forward_gated<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        (y, width): (&mut O::Buf, usize),
        out: &mut O::Buf,
    ) -> Result<()> {
        if self.bias.is_none() && !self.lora.exchanges(pass) {
            return self.lora.gemm_silu_mul(pass, x, (&self.weight, width), (y, out));
        }
        self.forward(pass, x, y)?;
        Ok(pass.ops.silu_mul(y, width, pass.rows, out)?)
    }

    /// [`Self::forward`] of queries, keys and values, and what they attend to.
    pub fn forward_attended<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        attend: Attend<'_, O>,
    ) -> Result<()> {
        if !self.lora.exchanges(pass) {
            return self.lora.gemm_attention(pass, x, (&self.weight, self.bias.as_ref()), attend);
        }
        let Attend { heads, table, cache, qkv, out } = attend;
        self.forward(pass, x, qkv)?;
        Ok(pass.ops.rope_attention(qkv, heads, table, pass.step, cache, out)?)
    }
}

/// Cut along the input: every rank has a partial sum of the whole output. What a block ends with,
/// so the residual stream takes it up, and is normalised for what comes behind.
pub struct RowLinear<O: Ops> {
    weight: O::Weight,
    /// On the first rank only, or the sum would have it once a rank.
    bias: Option<O::Weight>,
    pub lora: LoraSite<O>,
    norm: NormWeights<O>,
}

impl<O: Ops> RowLinear<O> {
    pub fn load(
        loader: &mut Loader<'_, O>,
        layer: usize,
        projection: &'static [Projection; 1],
        behind: &Tensor,
    ) -> Result<Self> {
        debug_assert!(projection[0].parallel() == Parallel::Row);
        Ok(Self {
            weight: loader.linear(layer, projection)?,
            bias: if loader.rank == 0 { loader.bias(layer, projection)? } else { None },
            lora: LoraSite::new(loader, projection)?,
            norm: NormWeights::load(loader, behind)?,
        })
    }

    /// `residual += inner weight^T + bias + adapters`, the sum over ranks, and
    /// `hidden = norm(residual)`.
    pub fn forward<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
    ) -> Result<()> {
        let (weight, norm) = ((&self.weight, self.bias.as_ref()), &self.norm);
        if pass.comm.ranks() == 1 && !self.lora.exchanges(pass) {
            return self.lora.gemm_add_norm(pass, act, weight, norm);
        }
        self.lora.gemm(pass, &act.inner, weight, &mut act.hidden)?;
        self.lora.exchange(pass, &act.inner, &mut act.hidden)?;
        pass.add_norm(act, norm)
    }
}
