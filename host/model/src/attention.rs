//! Grouped-query attention (arXiv 2305.13245) over the paged KV cache, this rank's heads.

use collective::comm::Comm;
use contract::base::Projection;
use kernels::ops::{Attend, CacheShape, HeadNorm, Heads, Ops};

use crate::error::Result;
use crate::linear::{ColumnLinear, RowLinear};
use crate::loader::Loader;
use crate::pass::{Activations, Pass};
use crate::tensors::Norm;

/// The attention block of one layer.
pub struct Attention<O: Ops> {
    pub qkv: ColumnLinear<O>,
    head_norm: Option<HeadNormWeights<O>>,
    pub output: RowLinear<O>,
    cache: O::Cache,
    heads: Heads,
}

struct HeadNormWeights<O: Ops> {
    queries: O::Weight,
    keys: O::Weight,
    eps: f32,
}

impl<O: Ops> Attention<O> {
    pub fn load(loader: &mut Loader<'_, O>, layer: usize) -> Result<Self> {
        let (heads, behind) = (heads(loader), loader.blueprint.config.norm(layer, Norm::Mlp));
        let cache = CacheShape {
            blocks: loader.blocks,
            block_tokens: loader.blueprint.block_tokens,
            heads: heads.keys_values,
            dim: heads.dim,
            dtype: loader.blueprint.dtype,
        };
        Ok(Self {
            qkv: ColumnLinear::load(loader, layer, &[Projection::Q, Projection::K, Projection::V])?,
            head_norm: HeadNormWeights::load(loader, layer)?,
            output: RowLinear::load(loader, layer, &[Projection::O], &behind)?,
            cache: loader.ops.cache(cache)?,
            heads,
        })
    }

    /// Adds what the rows of `act.hidden` attend to, to the residual stream.
    pub fn forward<C: Comm<O>>(
        &mut self,
        pass: &mut Pass<'_, O, C>,
        act: &mut Activations<O>,
    ) -> Result<()> {
        let (heads, table, cache) = (&self.heads, pass.rope, &mut self.cache);
        let Activations { hidden, fused: qkv, inner: out, .. } = &mut *act;
        let Some(HeadNormWeights { queries, keys, eps }) = &self.head_norm else {
            let attend = Attend { heads, table, cache, qkv, out };
            self.qkv.forward_attended(pass, hidden, attend)?;
            return self.output.forward(pass, act);
        };
        self.qkv.forward(pass, hidden, qkv)?;
        pass.ops.head_norm(qkv, heads, &HeadNorm { queries, keys, eps: *eps }, pass.rows)?;
        pass.ops.rope_attention(qkv, heads, table, pass.step, cache, out)?;
        self.output.forward(pass, act)
    }
}

impl<O: Ops> HeadNormWeights<O> {
    fn load(loader: &mut Loader<'_, O>, layer: usize) -> Result<Option<Self>> {
        let config = loader.blueprint.config;
        if !config.head_norm {
            return Ok(None);
        }
        Ok(Some(Self {
            queries: loader.norm(&config.norm(layer, Norm::Query))?,
            keys: loader.norm(&config.norm(layer, Norm::Key))?,
            eps: config.norm_eps,
        }))
    }
}

fn heads<O: Ops>(loader: &Loader<'_, O>) -> Heads {
    let config = loader.blueprint.config;
    let dim = config.shape.head_dim;
    Heads {
        queries: config.shape.heads / loader.ranks,
        keys_values: config.shape.kv_heads_of(loader.rank, loader.ranks).len(),
        dim,
        scale: (dim as f32).sqrt().recip(),
        window: config.window,
    }
}
