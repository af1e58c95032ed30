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

/// One value at the start of `bytes`.
pub fn read(dtype: DType, bytes: &[u8]) -> f32 {
    values(dtype, &bytes[..dtype.bytes()]).sum()
}

/// Elements of one type as elements of another; `scratch` holds them if they had to change.
pub fn convert<'a>(from: DType, bytes: &'a [u8], to: DType, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if from == to {
        return bytes;
    }
    scratch.clear();
    values(from, bytes).for_each(|value| write(to, value, scratch));
    scratch
}

/// Appends `value`, rounded to the nearest, ties to even.
pub fn write(dtype: DType, value: f32, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.resize(start + dtype.bytes(), 0);
    put(dtype, value, &mut bytes[start..]);
}

/// Writes `value` to the start of `bytes`, rounded to the nearest, ties to even.
pub fn put(dtype: DType, value: f32, bytes: &mut [u8]) {
    match dtype {
        DType::Bf16 => bytes[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DType::F16 => bytes[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::F32 => bytes[..4].copy_from_slice(&value.to_le_bytes()),
    }
}

/// The bits of `value` as bf16, ties to even, in a form that the compiler vectorises.
#[inline(always)]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_rounded_as_the_standard_says() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(bf16_bits(value), bf16::from_f32(value).to_bits(), "{value}");
            }
        }
    }
}
