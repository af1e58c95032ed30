//! A linear layer: `out = x weight^T + bias`.

use super::tensor::Tensor;

pub fn gemm(x: &[f32], weight: &Tensor, bias: Option<&Tensor>, rows: usize, out: &mut [f32]) {
    for row in 0..rows {
        let x = &x[row * weight.cols..][..weight.cols];
        for feature in 0..weight.rows {
            let bias = bias.map_or(0.0, |bias| bias.row(0)[feature]);
            out[row * weight.rows + feature] = dot(x, weight.row(feature)) + bias;
        }
    }
}

pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
