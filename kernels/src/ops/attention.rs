//! What attention is told of its heads, its cache and its buffers.

use contract::tensor::DType;

use super::Ops;

/// Attention heads of one rank. A row of fused queries, keys and values is
/// `[queries * dim | keys_values * dim | keys_values * dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key heads, and as many value heads; divides `queries`.
    pub keys_values: usize,
    /// Width of a head.
    pub dim: usize,
    /// Factor on query-key products.
    pub scale: f32,
    /// A row sees this many positions, itself included; `None` sees all before it.
    pub window: Option<usize>,
}

impl Heads {
    /// Width of a fused row.
    pub fn fused(&self) -> usize {
        (self.queries + 2 * self.keys_values) * self.dim
    }
}

/// Dimensions of the KV cache of one layer.
#[derive(Clone, Copy, Debug)]
pub struct CacheShape {
    /// Blocks.
    pub blocks: usize,
    /// Positions in a block.
    pub block_tokens: usize,
    /// Key heads of this rank.
    pub heads: usize,
    /// Width of a head.
    pub dim: usize,
    /// Element type.
    pub dtype: DType,
}

/// Normalisation weights of query and key heads (Qwen3).
pub struct HeadNorm<'a, W> {
    /// `[dim]`.
    pub queries: &'a W,
    /// `[dim]`.
    pub keys: &'a W,
    /// Added to the mean square.
    pub eps: f32,
}

/// Where attention of a layer finds and leaves things.
pub struct Attend<'a, O: Ops + ?Sized> {
    /// Of this rank.
    pub heads: &'a Heads,
    /// Angles of positions ([`Ops::rope_kv_store`]).
    pub table: &'a O::Weight,
    /// Of the layer.
    pub cache: &'a mut O::Cache,
    /// Room for queries, keys and values. What is left in it is the backend's own affair.
    pub qkv: &'a mut O::Buf,
    /// `[rows, queries * dim]`.
    pub out: &'a mut O::Buf,
}
