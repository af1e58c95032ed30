//! Rotary position embedding (arXiv 2104.09864), in the rotate-half form of Hugging Face.

use crate::ops::Heads;

use super::tensor::Tensor;

pub fn rope(qkv: &mut [f32], heads: &Heads, table: &Tensor, positions: &[u32]) {
    let rotated = (heads.queries + heads.keys_values) * heads.dim;
    for (position, row) in positions.iter().zip(qkv.chunks_exact_mut(heads.fused())) {
        let (cos, sin) = table.row(*position as usize).split_at(heads.dim / 2);
        for head in row[..rotated].chunks_exact_mut(heads.dim) {
            rotate(head, cos, sin);
        }
    }
}

/// Turns every pair `(head[i], head[i + dim / 2])` by the angle of `i`.
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for i in 0..cos.len() {
        let (x, y) = (low[i], high[i]);
        low[i] = x * cos[i] - y * sin[i];
        high[i] = y * cos[i] + x * sin[i];
    }
}
