//! A site where adapters add to linear layers: shrink, exchange where a pair needs it, expand.

use collective::comm::Comm;
use contract::adapter::{Exchange, LayerPairs, LocalPair, PairShape, Slot};
use contract::base::Projection;
use contract::counts::Purpose;
use kernels::lora::{SiteShape, SlotPairs};
use kernels::ops::{Attend, Ops, Precision};

use crate::error::Result;
use crate::loader::Loader;
use crate::pass::{Activations, NormWeights, Pass};

/// The adapters' part of one linear layer on one rank.
pub struct LoraSite<O: Ops> {
    site: O::Site,
    projections: &'static [Projection],
}

impl<O: Ops> LoraSite<O> {
    /// An empty site beside the fused weight of `projections`.
    pub fn new(loader: &mut Loader<'_, O>, projections: &'static [Projection]) -> Result<Self> {
        let shape = loader.blueprint.config.shape;
        let shard = |projection| shape.shard(projection, loader.rank, loader.ranks);
        let shape = SiteShape {
            input: shard(projections[0]).input.len(),
            targets: projections.iter().map(|projection| shard(*projection).output.len()).collect(),
            slots: loader.blueprint.slots_max,
        };
        let site = loader.ops.site(shape, loader.blueprint.dtype)?;
        Ok(Self { site, projections })
    }

    /// Replaces what lies in `slot`.
    pub fn load(&mut self, ops: &mut O, slot: Slot, layer: &LayerPairs) -> Result<()> {
        let pairs = self.pairs(layer).collect();
        Ok(ops.site_load(&mut self.site, &SlotPairs { slot, pairs })?)
    }

    /// Empties `slot`.
    pub fn unload(&mut self, ops: &mut O, slot: Slot) {
        ops.site_unload(&mut self.site, slot);
    }

    /// What a row shrinks to at this site, over all its projections.
    pub fn widths(&self, layer: &LayerPairs) -> ShrunkWidths {
        let mut widths = ShrunkWidths::default();
        for PairShape { shrink_rank, exchange, .. } in self.pairs(layer).flatten().map(|p| &p.shape)
        {
            widths.own += shrink_rank;
            if *exchange == Exchange::Gather {
                widths.gathered += shrink_rank;
            }
        }
        widths
    }

    fn pairs<'a>(&self, layer: &'a LayerPairs) -> impl Iterator<Item = Option<&'a LocalPair>> {
        self.projections.iter().map(|projection| layer[projection.index()].as_ref())
    }

    /// `y = x weight^T + bias`, and what pairs add for which nothing is exchanged.
    pub fn gemm<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        (weight, bias): (&O::Weight, Option<&O::Weight>),
        y: &mut O::Buf,
    ) -> Result<()> {
        let Pass { ops, step, rows, shrunk, .. } = pass;
        match shrunk {
            Some(Shrunk { own, .. }) if ops.lora_len(&self.site, step, Exchange::None) > 0 => {
                Ok(ops.adapted_gemm(x, (weight, bias), (&self.site, step, own), y)?)
            }
            _ => Ok(ops.gemm(x, weight, bias, *rows, y)?),
        }
    }

    /// `residual += inner weight^T + bias`, with what pairs add, and `hidden = norm(residual)`:
    /// where there is one rank, and [`Self::exchanges`] says no.
    pub fn gemm_add_norm<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
        weight: (&O::Weight, Option<&O::Weight>),
        norm: &NormWeights<O>,
    ) -> Result<()> {
        let Pass { ops, step, rows, shrunk, .. } = pass;
        let Activations { residual, hidden, inner, .. } = act;
        let norm = (residual, &norm.weight, norm.eps);
        match shrunk {
            Some(Shrunk { own, .. }) if ops.lora_len(&self.site, step, Exchange::None) > 0 => {
                let adapters = (&self.site, *step, own);
                Ok(ops.adapted_gemm_add_rms_norm(inner, weight, adapters, norm, hidden)?)
            }
            _ => Ok(ops.gemm_add_rms_norm(inner, weight, norm, *rows, hidden)?),
        }
    }

    /// The same of a gate and of what it lets through, `width` columns of each, and
    /// `out = silu(gate) * up`: where [`Self::exchanges`] says no, as adapters add to both before
    /// they meet.
    pub fn gemm_silu_mul<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        (weight, width): (&O::Weight, usize),
        (y, out): (&mut O::Buf, &mut O::Buf),
    ) -> Result<()> {
        let Pass { ops, step, rows, shrunk, .. } = pass;
        match shrunk {
            Some(Shrunk { own, .. }) if ops.lora_len(&self.site, step, Exchange::None) > 0 => {
                let adapters = (&self.site, *step, own);
                Ok(ops.adapted_gemm_silu_mul(x, (weight, width), adapters, y, out)?)
            }
            _ => Ok(ops.gemm_silu_mul(x, weight, (*rows, width), y, out)?),
        }
    }

    /// Queries, keys and values of `x`, with what pairs add, and what they attend to: where
    /// [`Self::exchanges`] says no.
    pub fn gemm_attention<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        weight: (&O::Weight, Option<&O::Weight>),
        attend: Attend<'_, O>,
    ) -> Result<()> {
        let Pass { ops, step, shrunk, .. } = pass;
        match shrunk {
            Some(Shrunk { own, .. }) if ops.lora_len(&self.site, step, Exchange::None) > 0 => {
                let adapters = (&self.site, *step, own);
                Ok(ops.adapted_gemm_rope_attention(x, weight, adapters, attend)?)
            }
            _ => Ok(ops.gemm_rope_attention(x, weight, step, attend)?),
        }
    }

    /// Whether pairs of the batch exchange what their rows shrink to.
    pub fn exchanges<C: Comm<O>>(&self, pass: &Pass<'_, O, C>) -> bool {
        let len = |exchange| pass.ops.lora_len(&self.site, pass.step, exchange);
        pass.shrunk.is_some() && (len(Exchange::Gather) > 0 || len(Exchange::Reduce) > 0)
    }

    /// `y += expand(exchange(shrink(x)))` for the rows whose pairs exchange.
    pub fn exchange<C: Comm<O>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        y: &mut O::Buf,
    ) -> Result<()> {
        let Pass { ops, comm, step, shrunk: Some(Shrunk { own, gathered, .. }), .. } = pass else {
            return Ok(());
        };
        for exchange in [Exchange::Gather, Exchange::Reduce] {
            let elements = ops.lora_len(&self.site, step, exchange);
            if elements == 0 {
                continue;
            }
            ops.lora_shrink(x, &self.site, step, exchange, own)?;
            let h = if exchange == Exchange::Gather {
                comm.all_gather(own, gathered, elements, Purpose::Lora)?;
                &*gathered
            } else {
                comm.all_reduce_sum(own, elements, Purpose::Lora)?;
                &*own
            };
            ops.lora_expand(h, &self.site, step, exchange, y)?;
        }
        Ok(())
    }
}

/// Lora ranks of one row at one site, on one rank of the group.
#[derive(Clone, Copy, Default)]
pub struct ShrunkWidths {
    own: usize,
    /// Those that all ranks gather.
    gathered: usize,
}

/// Room for shrunk activations. It grows when an adapter is loaded, never during a pass.
pub struct Shrunk<O: Ops> {
    own: O::Buf,
    /// Those of all ranks, one after the other.
    gathered: O::Buf,
    widths: ShrunkWidths,
    rows_max: usize,
}

impl<O: Ops> Shrunk<O> {
    pub fn new(ops: &mut O, rows_max: usize) -> Result<Self> {
        let (own, gathered) = (ops.buf(0, Precision::Full)?, ops.buf(0, Precision::Full)?);
        let rows_max = O::shrunk_rows(rows_max);
        Ok(Self { own, gathered, widths: ShrunkWidths::default(), rows_max })
    }

    /// Makes room for rows of such widths.
    pub fn reserve(&mut self, ops: &mut O, widths: ShrunkWidths, ranks: usize) -> Result<()> {
        if widths.own > self.widths.own {
            let width = widths.own.next_multiple_of(8);
            self.own = ops.buf(self.rows_max * width, Precision::Full)?;
            self.widths.own = widths.own;
        }
        if widths.gathered > self.widths.gathered {
            self.gathered = ops.buf(self.rows_max * widths.gathered * ranks, Precision::Full)?;
            self.widths.gathered = widths.gathered;
        }
        Ok(())
    }
}
