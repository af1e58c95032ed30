//! Element by element: the residual sum and the gated activation (arXiv 2002.05202).

pub fn add(delta: &[f32], elements: usize, residual: &mut [f32]) {
    for (residual, delta) in residual[..elements].iter_mut().zip(delta) {
        *residual += delta;
    }
}

pub fn silu_mul(gate_up: &[f32], width: usize, rows: usize, out: &mut [f32]) {
    for row in 0..rows {
        let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
        for i in 0..width {
            out[row * width + i] = silu(gate[i]) * up[i];
        }
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
