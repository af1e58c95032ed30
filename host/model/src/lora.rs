//! A site where adapters add to linear layers: shrink, exchange where a pair needs it, expand.

use collective::comm::Comm;
use contract::adapter::{Exchange, LayerPairs, LocalPair, Slot};
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
        let shape = loader.plan.config.shape;
        let shard = |projection| shape.shard(projection, loader.rank, loader.ranks);
        let shape = SiteShape {
            input: shard(projections[0]).input.len(),
            targets: projections.iter().map(|projection| shard(*projection).output.len()).collect(),
            slots: loader.plan.slots_max,
        };
        let site = loader.ops.site(shape, loader.plan.dtype)?;
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

    /// Lora rank that a row shrinks to at this site, over all its projections.
    pub fn shrink_rank(&self, layer: &LayerPairs) -> usize {
        self.pairs(layer).flatten().map(|pair| pair.shape.shrink_rank).sum()
    }

    fn pairs<'a>(&self, layer: &'a LayerPairs) -> impl Iterator<Item = Option<&'a LocalPair>> {
        self.projections.iter().map(|projection| layer[projection.index()].as_ref())
    }

    /// `y += expand(shrink(x))` for every row that has an adapter.
    pub fn forward<C: Comm<O::Buf>>(
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
            ops.lora_shrink(x, &self.site, step, exchange, own)?;
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
}

/// Room for shrunk activations. It grows when an adapter is loaded, never during a pass.
pub struct Shrunk<O: Ops> {
    own: O::Buf,
    /// Those of all ranks, one after the other.
    gathered: O::Buf,
    elements: usize,
}

impl<O: Ops> Shrunk<O> {
    pub fn new(ops: &mut O) -> Result<Self> {
        let (own, gathered) = (ops.buf(0, Precision::Full)?, ops.buf(0, Precision::Full)?);
        Ok(Self { own, gathered, elements: 0 })
    }

    /// Makes room for `elements` on each of `ranks`.
    pub fn reserve(&mut self, ops: &mut O, elements: usize, ranks: usize) -> Result<()> {
        if elements > self.elements {
            self.own = ops.buf(elements, Precision::Full)?;
            self.gathered = ops.buf(elements * ranks, Precision::Full)?;
            self.elements = elements;
        }
        Ok(())
    }
}
