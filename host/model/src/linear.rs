//! Linear layers cut across ranks as in Megatron-LM (arXiv 1909.08053, section 3), adapters
//! included.
//!
//! An adapter's local pair is cut like the layer it adds to, so it adds no collective: a column
//! needs none, and in a row both partial sums go through the same all-reduce.

use collective::comm::Comm;
use contract::base::{Parallel, Projection};
use contract::counts::Purpose;
use kernels::ops::Ops;

use crate::error::Result;
use crate::loader::Loader;
use crate::lora::LoraSite;
use crate::pass::Pass;

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
    pub fn forward<C: Comm<O::Buf>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        y: &mut O::Buf,
    ) -> Result<()> {
        self.lora.shrink(pass, x)?;
        pass.ops.gemm(x, &self.weight, self.bias.as_ref(), pass.rows, y)?;
        self.lora.expand(pass, x, y)
    }
}

impl<O: Ops> ColumnLinear<O> {
    /// [`Self::forward`] of a gate and of what it lets through, `width` columns of each, and
    /// `out = silu(gate) * up`.
    pub fn forward_gated<C: Comm<O::Buf>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        (y, width): (&mut O::Buf, usize),
        out: &mut O::Buf,
    ) -> Result<()> {
        // Adapters add to both before they meet.
        if pass.shrunk.is_none() && self.bias.is_none() {
            return Ok(pass.ops.gemm_silu_mul(x, &self.weight, (pass.rows, width), y, out)?);
        }
        self.lora.shrink(pass, x)?;
        pass.ops.gemm(x, &self.weight, self.bias.as_ref(), pass.rows, y)?;
        self.lora.expand_gated(pass, x, (y, width), out)
    }
}

/// Cut along the input: every rank has a partial sum of the whole output, and an all-reduce adds
/// them up.
pub struct RowLinear<O: Ops> {
    weight: O::Weight,
    /// On the first rank only, or the sum would have it once a rank.
    bias: Option<O::Weight>,
    output: usize,
    pub lora: LoraSite<O>,
}

impl<O: Ops> RowLinear<O> {
    pub fn load(
        loader: &mut Loader<'_, O>,
        layer: usize,
        projection: &'static [Projection; 1],
    ) -> Result<Self> {
        debug_assert!(projection[0].parallel() == Parallel::Row);
        let (_, output) = loader.blueprint.config.shape.features(projection[0]);
        Ok(Self {
            weight: loader.linear(layer, projection)?,
            bias: if loader.rank == 0 { loader.bias(layer, projection)? } else { None },
            output,
            lora: LoraSite::new(loader, projection)?,
        })
    }

    /// `y = x weight^T + bias + adapters`, summed over all ranks.
    pub fn forward<C: Comm<O::Buf>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        y: &mut O::Buf,
    ) -> Result<()> {
        self.lora.shrink(pass, x)?;
        pass.ops.gemm(x, &self.weight, self.bias.as_ref(), pass.rows, y)?;
        self.lora.expand(pass, x, y)?;
        Ok(pass.comm.all_reduce_sum(y, pass.rows * self.output, Purpose::Base)?)
    }
}
