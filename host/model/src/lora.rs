//! A site where adapters add to linear layers: shrink, exchange where a pair needs it, expand.

use collective::comm::Comm;
use contract::adapter::{Exchange, LayerPairs, LocalPair, PairShape, Slot};
use contract::base::Projection;
use contract::counts::Purpose;
use kernels::lora::{SiteShape, SlotPairs};
use kernels::ops::{Ops, Precision};

use crate::error::Result;
use crate::loader::Loader;
use crate::pass::Pass;

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

    /// The part of `y += expand(shrink(x))` that needs `x` alone: where nothing is exchanged, it
    /// comes before the base's product, whose weights are on their way meanwhile.
    pub fn shrink<C: Comm<O::Buf>>(&self, pass: &mut Pass<'_, O, C>, x: &O::Buf) -> Result<()> {
        let Pass { ops, step, shrunk: Some(Shrunk { own, .. }), .. } = pass else {
            return Ok(());
        };
        if ops.lora_len(&self.site, step, Exchange::None) > 0 {
            ops.lora_shrink(x, &self.site, step, Exchange::None, own)?;
        }
        Ok(())
    }

    /// The rest of it, after [`Self::shrink`] of the same `x`: for every row that has an adapter.
    pub fn expand<C: Comm<O::Buf>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        y: &mut O::Buf,
    ) -> Result<()> {
        let Pass { ops, comm, step, shrunk: Some(Shrunk { own, gathered, .. }), .. } = pass else {
            return Ok(());
        };
        for exchange in [Exchange::None, Exchange::Gather, Exchange::Reduce] {
            let elements = ops.lora_len(&self.site, step, exchange);
            if elements == 0 {
                continue;
            }
            if exchange != Exchange::None {
                ops.lora_shrink(x, &self.site, step, exchange, own)?;
            }
            let h = match exchange {
                Exchange::None => &*own,
                Exchange::Gather => {
                    comm.all_gather(own, gathered, elements, Purpose::Lora)?;
                    &*gathered
                }
                Exchange::Reduce => {
                    comm.all_reduce_sum(own, elements, Purpose::Lora)?;
                    &*own
                }
            };
            ops.lora_expand(h, &self.site, step, exchange, y)?;
        }
        Ok(())
    }

    /// [`Self::expand`] to a gate and what it lets through, `width` columns of each, and then
    /// `out = silu(gate) * up`.
    pub fn expand_gated<C: Comm<O::Buf>>(
        &self,
        pass: &mut Pass<'_, O, C>,
        x: &O::Buf,
        (y, width): (&mut O::Buf, usize),
        out: &mut O::Buf,
    ) -> Result<()> {
        let Pass { ops, step, shrunk, rows, .. } = &mut *pass;
        let exchanged = |exchange| ops.lora_len(&self.site, step, exchange) > 0;
        let Some(Shrunk { own, .. }) = shrunk else {
            return Ok(ops.silu_mul(y, width, *rows, out)?);
        };
        if !exchanged(Exchange::Gather) && !exchanged(Exchange::Reduce) {
            return Ok(ops.lora_expand_silu_mul(own, &self.site, step, (y, width), out)?);
        }
        self.expand(pass, x, y)?;
        Ok(pass.ops.silu_mul(y, width, pass.rows, out)?)
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
            self.own = ops.buf(self.rows_max * widths.own, Precision::Full)?;
            self.widths.own = widths.own;
        }
        if widths.gathered > self.widths.gathered {
            self.gathered = ops.buf(self.rows_max * widths.gathered * ranks, Precision::Full)?;
            self.widths.gathered = widths.gathered;
        }
        Ok(())
    }
}
