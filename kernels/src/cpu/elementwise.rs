//! What happens to each row or element by itself: norms, rotation, activation, sums, look-ups.

use crate::math::{exp, squares};
use crate::ops::{HeadNorm, Heads};

use super::simd::Plain;
use super::weight::Weight;
use super::workers::Workers;

/// [`crate::ops::Ops::embed`].
pub fn embed(workers: &Workers, table: &Weight, first: u32, tokens: &[u32], out: &mut [f32]) {
    let width = table.cols();
    workers.rows(&mut out[..tokens.len() * width], width, |start, out| {
        for (token, out) in tokens[start..].iter().zip(out.chunks_exact_mut(width)) {
            match token.checked_sub(first).map(|row| row as usize) {
                Some(row) if row < table.rows() => table.row(row, out),
                _ => out.fill(0.0),
            }
        }
    });
}

/// [`crate::ops::Ops::pick_rows`].
pub fn pick_rows(x: &[f32], width: usize, picked: &[u32], out: &mut [f32]) {
    for (row, out) in picked.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&x[*row as usize * width..][..width]);
    }
}

/// The sum of [`crate::ops::Ops::add_rms_norm`].
pub fn add(workers: &Workers, delta: &[f32], residual: &mut [f32]) {
    workers.rows(residual, 1, |start, residual| {
        workers.isa.run(Plain(|| {
            for (residual, delta) in residual.iter_mut().zip(&delta[start..]) {
                *residual += delta;
            }
        }));
    });
}

/// [`crate::ops::Ops::rms_norm`].
pub fn rms_norm(workers: &Workers, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    workers.rows(out, width, |start, out| {
        out.copy_from_slice(&x[start * width..][..out.len()]);
        workers.isa.run(Plain(|| {
            for row in out.chunks_exact_mut(width) {
                normalise(row, weight, eps);
            }
        }));
    });
}

/// [`crate::ops::Ops::head_norm`].
pub fn head_norm(workers: &Workers, qkv: &mut [f32], heads: &Heads, norm: &HeadNorm<'_, Weight>) {
    let (queries, keys) = (norm.queries.vector(), norm.keys.vector());
    workers.rows(qkv, heads.fused(), |_, rows| {
        workers.isa.run(Plain(|| {
            for row in rows.chunks_exact_mut(heads.fused()) {
                for (i, head) in rotated(row, heads).chunks_exact_mut(heads.dim).enumerate() {
                    let weight = if i < heads.queries { queries } else { keys };
                    normalise(head, weight, norm.eps);
                }
            }
        }));
    });
}

/// [`crate::ops::Ops::rope`].
pub fn rope(workers: &Workers, qkv: &mut [f32], heads: &Heads, table: &Weight, positions: &[u32]) {
    let fused = heads.fused();
    workers.rows(&mut qkv[..positions.len() * fused], fused, |start, rows| {
        let mut angles = vec![0.0; heads.dim];
        for (position, row) in positions[start..].iter().zip(rows.chunks_exact_mut(fused)) {
            table.row(*position as usize, &mut angles);
            workers.isa.run(Plain(|| {
                for head in rotated(row, heads).chunks_exact_mut(heads.dim) {
                    rotate(head, &angles);
                }
            }));
        }
    });
}

/// [`crate::ops::Ops::silu_mul`].
pub fn silu_mul(workers: &Workers, gate_up: &[f32], width: usize, out: &mut [f32]) {
    workers.rows(out, width, |start, out| {
        let rows = gate_up[start * 2 * width..].chunks_exact(2 * width);
        workers.isa.run(Plain(|| {
            for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                let (gate, up) = row.split_at(width);
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exp(-gate)) * up;
                }
            }
        }));
    });
}

/// The query and key heads of a fused row.
fn rotated<'a>(row: &'a mut [f32], heads: &Heads) -> &'a mut [f32] {
    &mut row[..(heads.queries + heads.keys_values) * heads.dim]
}

#[inline(always)]
fn normalise(x: &mut [f32], weight: &[f32], eps: f32) {
    let factor = 1.0 / (squares(x) / x.len() as f32 + eps).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x *= factor * weight;
    }
}

/// Turns every pair `(head[i], head[i + dim / 2])`; `angles` is `[cos | sin]`.
#[inline(always)]
fn rotate(head: &mut [f32], angles: &[f32]) {
    let half = head.len() / 2;
    let ((low, high), (cos, sin)) = (head.split_at_mut(half), angles.split_at(half));
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}
