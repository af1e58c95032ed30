//! How large a KV cache is to be: as asked for, or as there is room for.

use contract::tensor::DType;
use model::footprint::block_bytes;
use model::room::Blocks;

use crate::backend::Backend;
use crate::error::StartError;
use crate::group::GroupSpec;
use crate::host;

/// Where `context_max` is left to us, a device with room for less than this is too small.
const CONTEXT_MIN: usize = 2048;

/// What decides over the size of the KV cache.
pub struct Cache<'a> {
    spec: &'a GroupSpec<'a>,
    dtype: DType,
    /// Of one block over all ranks; a block lies in every layer of every rank.
    block_bytes: u64,
}

impl<'a> Cache<'a> {
    pub fn of(spec: &'a GroupSpec<'a>) -> Self {
        let dtype = spec.model.dtype.unwrap_or(spec.config.dtype);
        let (ranks, tokens) = (spec.parallel.tensor, spec.engine.block_tokens);
        let of_rank = block_bytes(&spec.config.shape, ranks, tokens, dtype.bytes());
        Self { spec, dtype, block_bytes: of_rank * ranks as u64 }
    }

    /// Blocks on `backend`, as far as they are known before its devices are looked at.
    pub fn blocks(&self, backend: &Backend) -> Result<Blocks, StartError> {
        match (self.spec.engine.kv_cache_bytes, backend) {
            (Some(bytes), _) => self.fixed(bytes).map(Blocks::Fixed),
            (None, Backend::Cuda(_)) => {
                Ok(Blocks::Fitting { least: self.least(), most: self.most() })
            }
            (None, Backend::Cpu { .. }) => self.on_host().map(Blocks::Fixed),
        }
    }

    /// Whether a size that was asked for holds what else was.
    pub fn check(&self) -> Result<(), StartError> {
        self.spec.engine.kv_cache_bytes.map_or(Ok(()), |bytes| self.fixed(bytes).map(drop))
    }

    /// Blocks that fit into the cache that was asked for.
    fn fixed(&self, bytes: u64) -> Result<usize, StartError> {
        let (dtype, block_tokens) = (self.dtype, self.spec.engine.block_tokens);
        let blocks = (bytes / self.block_bytes) as usize;
        if blocks == 0 {
            let block_bytes = self.block_bytes;
            return Err(StartError::Cache { bytes, block_bytes, block_tokens, dtype });
        }
        match self.spec.model.context_max {
            Some(context) if context > blocks * block_tokens => Err(StartError::Context {
                context,
                bytes,
                tokens: blocks * block_tokens,
                needed: context.div_ceil(block_tokens) as u64 * self.block_bytes,
            }),
            _ => Ok(blocks),
        }
    }

    /// Blocks that this machine has memory for.
    fn on_host(&self) -> Result<usize, StartError> {
        let replicas = self.spec.parallel.replicas as u64;
        let weights = self.spec.config.weights_bytes(self.dtype);
        let available = host::available().ok_or(StartError::UnknownHost)?;
        let bytes = host::cache_bytes(available, weights, replicas);
        match (bytes / self.block_bytes) as usize {
            blocks if blocks >= self.least() => Ok(blocks.min(self.most())),
            _ => Err(StartError::Host {
                available,
                weights: weights * replicas,
                cache: bytes,
                needed: self.least() as u64 * self.block_bytes,
                tokens: self.least() * self.spec.engine.block_tokens,
            }),
        }
    }

    /// Blocks of the longest sequence there has to be room for.
    fn least(&self) -> usize {
        let GroupSpec { config, model, engine, .. } = self.spec;
        let context = model.context_max.unwrap_or(config.positions_max.min(CONTEXT_MIN));
        context.div_ceil(engine.block_tokens)
    }

    /// Blocks of the longest sequences, as many as run at once; with a prefix cache, as many again
    /// that are kept.
    fn most(&self) -> usize {
        let GroupSpec { config, model, engine, .. } = self.spec;
        let context = model.context_max.unwrap_or(config.positions_max);
        let kept = if engine.prefix_cache { 2 } else { 1 };
        kept * engine.sequences_max.saturating_mul(context.div_ceil(engine.block_tokens))
    }
}
