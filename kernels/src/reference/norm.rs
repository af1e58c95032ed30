//! Root mean square normalisation (arXiv 1910.07467), of rows and of single heads.

use crate::ops::{HeadNorm, Heads};

use super::linear::dot;
use super::tensor::Tensor;

pub fn rms_norm(x: &[f32], weight: &Tensor, eps: f32, rows: usize, out: &mut [f32]) {
    let width = weight.cols;
    out[..rows * width].copy_from_slice(&x[..rows * width]);
    for row in out.chunks_exact_mut(width).take(rows) {
        normalise(row, weight.row(0), eps);
    }
}

pub fn head_norm(qkv: &mut [f32], heads: &Heads, norm: &HeadNorm<'_, Tensor>, rows: usize) {
    for row in qkv.chunks_exact_mut(heads.fused()).take(rows) {
        let (queries, rest) = row.split_at_mut(heads.queries * heads.dim);
        let keys = &mut rest[..heads.keys_values * heads.dim];
        for head in queries.chunks_exact_mut(heads.dim) {
            normalise(head, norm.queries.row(0), norm.eps);
        }
        for head in keys.chunks_exact_mut(heads.dim) {
            normalise(head, norm.keys.row(0), norm.eps);
        }
    }
}

fn normalise(x: &mut [f32], weight: &[f32], eps: f32) {
    let rms = (dot(x, x) / x.len() as f32 + eps).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x / rms * weight;
    }
}
