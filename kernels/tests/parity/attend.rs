//! Queries, keys and values of decode, with and without what adapters add, and what they attend to,
//! in one operation.

use std::sync::Arc;

use contract::adapter::Exchange;
use contract::step::{Batch, BlockId, Span};
use contract::tensor::DType;
use kernels::ops::{Attend, CacheShape, Heads, Ops, Precision, Rows};

use crate::bench::{Bench, Case, Promise, poisoned, poisoned_as, upload, weight};
use crate::lora::{Lora, Share, local_pair};

/// Inputs, query heads, key heads, width: where a GPU takes the inputs in splits, in even and
/// uneven ones, and where it does not.
const SHAPES: [(usize, usize, usize, usize); 4] =
    [(3136, 2, 1, 64), (1088, 8, 1, 128), (1088, 2, 1, 96), (128, 4, 2, 64)];

/// Lora ranks of queries, and of keys and values.
const SLOTS: [[usize; 2]; 5] = [[16, 16], [64, 8], [128, 24], [8, 256], [96, 33]];

const MIXES: [&[Share]; 5] = [
    &[(None, 1)],
    &[(None, 21)],
    &[(Some(2), 1)],
    &[(None, 2), (Some(0), 1), (Some(1), 1), (Some(2), 1), (Some(3), 1), (Some(0), 2)],
    &[(Some(0), 20), (Some(1), 19)],
];

/// Positions of a block, and steps: each row sees its own of all before.
const BLOCK_TOKENS: usize = 4;
const STEPS: usize = 2;

/// Where products are cuBLASLt's and of f32, this is two operations one after the other, which have
/// checks of their own; and one of its products, 24 x 3136 x 256, came to NaN on an H200
/// (docs/performance.md).
pub fn check<O: Ops>(bench: &mut Bench<O>) {
    let Promise { activations, same_products, .. } = bench.promise;
    if activations == DType::F32 && !same_products {
        return;
    }
    for (input, queries, keys_values, dim) in SHAPES {
        let heads = Heads { queries, keys_values, dim, scale: 0.1, window: None };
        for mix in MIXES {
            compare(bench, (input, heads), mix);
        }
    }
}

fn compare<O: Ops>(bench: &mut Bench<O>, (input, heads): (usize, Heads), mix: &[Share]) {
    let rows: u32 = mix.iter().map(|(_, rows)| rows).sum();
    let targets = [heads.queries * heads.dim, 2 * heads.keys_values * heads.dim];
    let random = &mut bench.random;
    let slots = SLOTS.map(|ranks| {
        let mut pair = |target: usize| {
            let shape = (input, (target, targets[target]));
            Some(local_pair(random, shape, (ranks[target], 1, 1), Exchange::None))
        };
        vec![pair(0), pair(1)]
    });
    for dtype in bench.dtypes() {
        let random = &mut bench.random;
        // Small sums: of large ones, the exponential makes much of a small rounding.
        let x = random.values(STEPS * rows as usize * input).iter().map(|x| x / 64.0).collect();
        let lora = Lora {
            slots: slots.to_vec(),
            segments: mix.to_vec(),
            x,
            y: Vec::new(),
            exchange: Exchange::None,
            dtype,
            decode: true,
            targets,
        };
        let matrix = random.values(heads.fused() * input);
        let bias = rows.is_multiple_of(2).then(|| random.values(heads.fused()));
        let name = format!("{rows} x {input}, attended by {heads:?}, {dtype}");
        bench.agree(&name, dtype, &Attended { lora, heads, matrix, bias });
    }
}

/// The segments of `lora`, one sequence a row; its `x` are the rows of one step after the other.
struct Attended {
    lora: Lora,
    heads: Heads,
    matrix: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Attended {
    /// Every row at this position of its sequence.
    fn batch(&self, position: usize) -> Arc<Batch> {
        let rows = self.lora.rows() as u32;
        let batch = Batch::clone(&self.lora.batch());
        Arc::new(Batch {
            positions: vec![position as u32; rows as usize],
            spans: (0..rows).map(|row| Span { rows: row..row + 1, blocks: row..row + 1 }).collect(),
            blocks: (0..rows).rev().map(BlockId).collect(),
            ..batch
        })
    }

    /// Turns every pair of a head by quarters, more at another position: no backend rounds them.
    fn table<O: Ops>(&self, ops: &mut O) -> O::Weight {
        let half = self.heads.dim / 2;
        let sine = |quarters: usize| [0.0, 1.0, 0.0, -1.0][quarters % 4];
        let angles = |at: usize| (0..half).map(move |pair| sine(at + pair));
        let values: Vec<f32> = (0..STEPS).flat_map(|at| angles(at + 1).chain(angles(at))).collect();
        weight(ops, &values, self.heads.dim, DType::F32)
    }
}

impl Case for Attended {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let Self { lora, heads, .. } = self;
        let (rows, dtype) = (lora.rows(), lora.dtype);
        let input = lora.x.len() / STEPS / rows;
        let shape = CacheShape {
            blocks: rows,
            block_tokens: BLOCK_TOKENS,
            heads: heads.keys_values,
            dim: heads.dim,
            dtype,
        };
        let mut cache = ops.cache(shape).expect("a cache");
        let (site, table) = (lora.site_of(ops, input), self.table(ops));
        let matrix = weight(ops, &self.matrix, input, dtype);
        let bias = self.bias.as_ref().map(|bias| weight(ops, bias, heads.fused(), dtype));
        let mut all = Vec::new();
        for (position, x) in lora.x.chunks(rows * input).enumerate() {
            let step = ops.step(&self.batch(position), rows + 3).expect("a step");
            let mut x = x.to_vec();
            // A row that pads the step is nobody's: it may hold anything.
            x.resize(step.rows() * input, f32::NAN);
            let x = upload(ops, &x);
            let mut qkv = poisoned(ops, step.rows() * heads.fused());
            let width = heads.queries * heads.dim;
            let mut out = poisoned(ops, step.rows() * width);
            let attend =
                Attend { heads, table: &table, cache: &mut cache, qkv: &mut qkv, out: &mut out };
            let product = (&matrix, bias.as_ref());
            let len = ops.lora_len(&site, &step, Exchange::None);
            if len > 0 {
                let mut h = poisoned_as(ops, len, Precision::Full);
                let adapters = (&site, &step, &mut h);
                let done = ops.adapted_gemm_rope_attention(&x, product, adapters, attend);
                done.expect("adapted_gemm_rope_attention");
            } else {
                let done = ops.gemm_rope_attention(&x, product, &step, attend);
                done.expect("gemm_rope_attention");
            }
            all.extend(ops.read(&out, rows * width).expect("the output"));
        }
        all
    }
}
