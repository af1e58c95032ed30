//! Rows taken from a table: token embeddings, and rows of activations.

use super::tensor::Tensor;

pub fn embed(table: &Tensor, first: u32, tokens: &[u32], out: &mut [f32]) {
    for (token, out) in tokens.iter().zip(out.chunks_exact_mut(table.cols)) {
        match token.checked_sub(first).map(|row| row as usize) {
            Some(row) if row < table.rows => out.copy_from_slice(table.row(row)),
            _ => out.fill(0.0),
        }
    }
}

pub fn pick_rows(x: &[f32], width: usize, picked: &[u32], out: &mut [f32]) {
    for (row, out) in picked.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&x[*row as usize * width..][..width]);
    }
}
