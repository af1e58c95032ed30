//! Attention over caches of many layers.

use std::sync::Arc;

use contract::step::{Batch, BlockId, Span};
use contract::tensor::DType;
use kernels::cuda::Cuda;
use kernels::error::Result;
use kernels::ops::{CacheShape, Heads, Ops, WeightView};

use crate::{BYTES, activations, line, time};

/// The heads of the 8B shape.
const HEADS: Heads =
    Heads { queries: 32, keys_values: 8, dim: 128, scale: 0.088_388_35, window: None };

const BLOCK_TOKENS: usize = 16;

/// Sequences, positions of each before the step, and rows of each in it.
const CASES: [(usize, usize, usize); 9] = [
    (1, 200, 1),
    (8, 200, 1),
    (32, 200, 1),
    (64, 200, 1),
    (1, 8000, 1),
    (8, 8000, 1),
    (64, 2000, 1),
    (1, 0, 2048),
    (4, 0, 2048),
];

pub fn run(cuda: &mut Cuda) -> Result<()> {
    let table = rope_table(cuda)?;
    for (sequences, before, rows) in CASES {
        let batch = batch(sequences, before, rows);
        let blocks = batch.blocks.len();
        let step = cuda.step(&batch, 0)?;
        let mut qkv = activations(cuda, sequences * rows * HEADS.fused())?;
        let mut out = activations(cuda, sequences * rows * HEADS.queries * HEADS.dim)?;
        let held = 2 * blocks * BLOCK_TOKENS * HEADS.keys_values * HEADS.dim * DType::Bf16.bytes();
        let layers = BYTES.div_ceil(held).min(256);
        let caches = (0..layers).map(|_| {
            cuda.cache(CacheShape {
                blocks,
                block_tokens: BLOCK_TOKENS,
                heads: HEADS.keys_values,
                dim: HEADS.dim,
                dtype: DType::Bf16,
            })
        });
        let mut caches = caches.collect::<Result<Vec<_>>>()?;
        let store = time(cuda, layers, |cuda| {
            let mut caches = caches.iter_mut();
            caches.try_for_each(|cache| cuda.rope_kv_store(&mut qkv, &HEADS, &table, &step, cache))
        })?;
        let attend = time(cuda, layers, |cuda| {
            let mut caches = caches.iter();
            caches.try_for_each(|cache| cuda.attention(&qkv, &HEADS, &step, cache, &mut out))
        })?;
        let case = format!("{sequences} x ({before} + {rows})");
        let row_bytes = 2 * HEADS.keys_values * HEADS.dim * DType::Bf16.bytes();
        line(&format!("rope_kv_store {case}"), store, 2 * sequences * rows * row_bytes);
        line(&format!("attention {case}"), attend, sequences * (before + rows) * row_bytes);
        if rows > 1 {
            let products = 2 * sequences * HEADS.queries * HEADS.dim * rows * rows;
            println!("{:44} {:8.0} TFLOP/s", "", products as f64 / attend.as_secs_f64() / 1e12);
        }
    }
    Ok(())
}

/// Angles of 0 at every position.
fn rope_table(cuda: &mut Cuda) -> Result<<Cuda as Ops>::Weight> {
    let (rows, cols) = (8192, HEADS.dim);
    let row =
        |_| (0..cols).flat_map(move |i| if 2 * i < cols { 1.0_f32 } else { 0.0 }.to_le_bytes());
    let bytes: Vec<u8> = (0..rows).flat_map(row).collect();
    cuda.weight(
        &[WeightView { dtype: DType::F32, rows, cols, stride: cols, bytes: &bytes }],
        DType::F32,
    )
}

fn batch(sequences: usize, before: usize, rows: usize) -> Arc<Batch> {
    let blocks = (before + rows).div_ceil(BLOCK_TOKENS);
    let span = |i: usize| Span {
        rows: (i * rows) as u32..((i + 1) * rows) as u32,
        blocks: (i * blocks) as u32..((i + 1) * blocks) as u32,
    };
    let positions = (before as u32..(before + rows) as u32).cycle().take(sequences * rows);
    Arc::new(Batch {
        tokens: vec![0; sequences * rows],
        positions: positions.collect(),
        spans: (0..sequences).map(span).collect(),
        blocks: (0..(sequences * blocks) as u32).map(BlockId).collect(),
        ..Batch::default()
    })
}
