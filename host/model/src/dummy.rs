//! Random weights in the shape of a real model.

use std::ops::Range;
use std::thread;

use contract::tensor::DType;
use half::{bf16, f16};

use crate::tensors::Tensor;

/// Half the width of the uniform distribution whose standard deviation is 0.02, the usual
/// `initializer_range`.
const LIMIT: f32 = 0.034_64;

/// From this many bytes on, more threads share the work: a model of billions is made in seconds.
const THREAD_BYTES_MIN: usize = 1 << 20;

/// Weights that depend on the seed, the tensor's name and the element's place alone, so that every
/// cut of a tensor is a cut of the same matrix. Norms are ones, biases zeros.
#[derive(Clone, Copy, Debug)]
pub struct Dummy {
    /// Same seed, same weights.
    pub seed: u64,
    /// Element type to make.
    pub dtype: DType,
}

impl Dummy {
    /// The elements of some rows and columns, little-endian and row-major.
    pub fn part(&self, tensor: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Vec<u8> {
        let row_bytes = cols.len() * self.dtype.bytes();
        let mut bytes = vec![0; rows.len() * row_bytes];
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = cores.min(bytes.len() / THREAD_BYTES_MIN).max(1);
        let share = rows.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            for (index, bytes) in bytes.chunks_mut(share * row_bytes).enumerate() {
                let (first, cols) = (rows.start + index * share, cols.clone());
                let fill = move || self.fill(tensor, first, cols, bytes);
                if threads == 1 {
                    fill();
                } else {
                    scope.spawn(fill);
                }
            }
        });
        bytes
    }

    /// Writes rows from `first` on, as many as `bytes` hold.
    fn fill(&self, tensor: &Tensor, first: usize, cols: Range<usize>, bytes: &mut [u8]) {
        let row_bytes = cols.len() * self.dtype.bytes();
        let key = self.key(&tensor.name);
        for (row, bytes) in (first..).zip(bytes.chunks_exact_mut(row_bytes)) {
            let start = row * tensor.cols();
            let places = start + cols.start..start + cols.end;
            match tensor.name.as_str() {
                name if name.ends_with("norm.weight") => self.write(places.map(|_| 1.0), bytes),
                name if name.ends_with(".bias") => self.write(places.map(|_| 0.0), bytes),
                _ => self.write(places.map(|place| uniform(key ^ place as u32)), bytes),
            }
        }
    }

    /// FNV-1a, so that weights are the same for ever.
    fn key(&self, name: &str) -> u32 {
        let start = 0xcbf2_9ce4_8422_2325 ^ self.seed;
        let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        (name.bytes().fold(start, step) >> 32) as u32
    }

    fn write(&self, values: impl Iterator<Item = f32>, bytes: &mut [u8]) {
        let values = values.zip(bytes.chunks_exact_mut(self.dtype.bytes()));
        match self.dtype {
            DType::F32 => values.for_each(|(v, to)| to.copy_from_slice(&v.to_le_bytes())),
            DType::F16 => {
                values.for_each(|(v, to)| to.copy_from_slice(&f16::from_f32(v).to_le_bytes()));
            }
            DType::Bf16 => {
                values.for_each(|(v, to)| to.copy_from_slice(&bf16::from_f32(v).to_le_bytes()));
            }
        }
    }
}

/// A number in `-LIMIT..LIMIT` from the bits of `place`, mixed as in Wellons' `lowbias32`.
fn uniform(place: u32) -> f32 {
    let mut mixed = place;
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x7feb_352d);
    mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x846c_a68b);
    mixed ^= mixed >> 16;
    mixed as i32 as f32 * (LIMIT / 2.0_f32.powi(31))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str) -> Tensor {
        Tensor { name: name.to_owned(), shape: vec![64, 96] }
    }

    fn values(bytes: &[u8]) -> impl Iterator<Item = f32> {
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
    }

    #[test]
    fn weights_spread_like_a_fresh_model() {
        let dummy = Dummy { seed: 3, dtype: DType::F32 };
        let bytes = dummy.part(&tensor("model.layers.0.mlp.up_proj.weight"), 0..64, 0..96);
        let count = values(&bytes).count() as f32;
        let mean = values(&bytes).sum::<f32>() / count;
        let deviation = (values(&bytes).map(|value| value * value).sum::<f32>() / count).sqrt();
        assert_eq!(count, 64.0 * 96.0);
        assert!(mean.abs() < 1e-3 && (deviation - 0.02).abs() < 1e-3, "{mean} {deviation}");
        assert!(values(&bytes).all(|value| value.abs() <= LIMIT));
    }

    #[test]
    fn a_part_is_a_cut_of_the_whole() {
        let dummy = Dummy { seed: 3, dtype: DType::F32 };
        let tensor = tensor("lm_head.weight");
        let whole: Vec<_> = values(&dummy.part(&tensor, 0..64, 0..96)).collect();
        let part: Vec<_> = values(&dummy.part(&tensor, 5..7, 10..40)).collect();
        assert_eq!(part[..30], whole[5 * 96 + 10..][..30]);
        assert_eq!(part[30..], whole[6 * 96 + 10..][..30]);
        assert!(values(&dummy.part(&tensor, 0..64, 0..96)).eq(whole));
    }
}
