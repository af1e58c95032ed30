//! The paged KV cache of one layer.

use std::sync::Arc;

use contract::tensor::DType;
use cudarc::driver::CudaStream;

use crate::error::{Error, Result};
use crate::ops::CacheShape;

use super::device::to_u32;
use super::memory::Memory;

/// Keys and values of one layer, `[blocks, heads, block_tokens, dim]` each.
pub struct Cache {
    memory: Memory,
    shape: CacheShape,
    held: DType,
}

impl Cache {
    pub fn new(stream: &Arc<CudaStream>, shape: CacheShape, held: DType) -> Result<Self> {
        if shape.dtype != held && held != DType::F32 {
            let wanted = shape.dtype;
            let why = format!("a KV cache of {wanted} was asked for beside a model of {held}");
            return Err(Error::Device(why + ": the CUDA backend keeps both in one type"));
        }
        let memory = Memory::zeroed(stream, 2 * half_bytes(&shape, held), "the KV cache")?;
        Ok(Self { memory, shape, held })
    }

    pub fn keys(&self) -> u64 {
        self.memory.address()
    }

    pub fn values(&self) -> u64 {
        self.memory.address() + half_bytes(&self.shape, self.held) as u64
    }

    /// The element type that its values are rounded to, if it is not the one they are kept in, as
    /// kernels take it.
    pub fn stands_for(&self) -> u32 {
        match (self.held, self.shape.dtype) {
            (DType::F32, DType::F16) => 1,
            (DType::F32, DType::Bf16) => 2,
            _ => 0,
        }
    }

    pub fn block_tokens(&self) -> u32 {
        to_u32(self.shape.block_tokens)
    }
}

fn half_bytes(shape: &CacheShape, held: DType) -> usize {
    let elements = shape.blocks * shape.block_tokens * shape.heads * shape.dim;
    (elements * held.bytes()).next_multiple_of(256)
}
