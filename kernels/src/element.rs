//! Reading, rounding and writing elements of the stored types.

use contract::tensor::DType;
use half::{bf16, f16};

/// The values of little-endian elements.
pub fn values(dtype: DType, bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(dtype.bytes()).map(move |bytes| match (dtype, bytes) {
        (DType::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("chunks are as long as an element"),
    })
}

/// `value` to the nearest of `dtype`, ties to even, and back.
pub fn round(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::F32 => value,
    }
}
