//! Look-ups, norms, rotation, activations.

use std::sync::Arc;

use contract::step::{Batch, BlockId, Choice, Query, Span};
use contract::tensor::DType;
use kernels::ops::{CacheShape, HeadNorm, Heads, Ops};

use crate::bench::{Bench, Case, poisoned, upload, weight};

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    for (rows, width) in [(1, 1), (3, 17), (5, 64), (2, 2048), (40, 1000), (600, 72), (513, 3000)] {
        let case = format!("{rows} x {width}");
        let x = bench.random.values(rows * width);
        let y = bench.random.values(rows * width);
        let picked = bench.random.shuffled(rows);
        bench.agree(&format!("pick_rows {case}"), DType::F32, &Pick(x.clone(), width, picked));
        // Exact in every type: of a large gate, the exponential makes much of a small rounding.
        let wide: Vec<f32> = x.iter().chain(&y).map(|x| (x * 240.0).round() / 4.0).collect();
        bench.agree(&format!("silu_mul {case}"), DType::F32, &SiluMul(wide, width));
        for dtype in bench.dtypes() {
            let norm = Norm { x: x.clone(), weight: y[..width].to_vec(), dtype };
            bench.agree(&format!("rms_norm {case} {dtype}"), dtype, &norm);
            // Exact in every type: of two that nearly cancel, rounding leaves little else.
            let exact = |values: &[f32]| values.iter().map(|x| (x * 64.0).round() / 64.0).collect();
            let residual = exact(&bench.random.values(rows * width));
            let norm = AddNorm { norm: Norm { x: exact(&x), ..norm }, residual };
            bench.agree(&format!("add_rms_norm {case} {dtype}"), dtype, &norm);
            let tokens = (0..20).map(|_| bench.random.below(2 * rows) as u32).collect();
            let embed = Embed { table: x.clone(), width, first: rows as u32 / 2, tokens, dtype };
            bench.agree(&format!("embed {case} {dtype}"), dtype, &embed);
        }
    }
    for (queries, keys_values, dim) in [(1, 1, 2), (8, 2, 8), (6, 3, 80), (14, 2, 64), (40, 8, 128)]
    {
        let heads = Heads { queries, keys_values, dim, scale: 1.0, window: None };
        for rows in [1, 7, 50] {
            let qkv = bench.random.values(rows * heads.fused());
            let weights = bench.random.values(2 * dim);
            let table = bench.random.values(100 * dim);
            let positions = (0..rows).map(|_| bench.random.below(100) as u32).collect();
            let dtype = bench.promise.activations;
            let rotate = Rotate { qkv, heads, weights, table, positions, dtype };
            bench.agree(&format!("head_norm, rope {heads:?} x {rows}"), DType::F32, &rotate);
        }
    }
}

struct Pick(Vec<f32>, usize, Vec<u32>);

impl Case for Pick {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let Self(x, width, picked) = self;
        let (rows, whole) = (x.len() / width, picked.len());
        let (x, mut out) = (upload(ops, x), poisoned(ops, x.len()));
        let query = |row: &u32| Query { row: *row, choice: Choice::Given(0), top_logprobs: None };
        let queries = picked.iter().map(query).collect();
        let batch = Batch { tokens: vec![0; rows], queries, ..Batch::default() };
        let step = ops.step(&Arc::new(batch), 0).expect("a step");
        ops.pick_rows(&x, *width, &step, 0..whole, &mut out).expect("pick_rows");
        let mut all = ops.read(&out, whole * width).expect("the output");
        ops.pick_rows(&x, *width, &step, whole / 2..whole, &mut out).expect("pick_rows");
        all.extend(ops.read(&out, (whole - whole / 2) * width).expect("the output"));
        all
    }
}

struct SiluMul(Vec<f32>, usize);

impl Case for SiluMul {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let elements = self.0.len() / 2;
        let (x, mut out) = (upload(ops, &self.0), poisoned(ops, elements));
        ops.silu_mul(&x, self.1, elements / self.1, &mut out).expect("silu_mul");
        ops.read(&out, elements).expect("the output")
    }
}

struct Norm {
    x: Vec<f32>,
    weight: Vec<f32>,
    dtype: DType,
}

impl Case for Norm {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let width = self.weight.len();
        let (x, mut out) = (upload(ops, &self.x), poisoned(ops, self.x.len()));
        let weight = weight(ops, &self.weight, width, self.dtype);
        ops.rms_norm(&x, &weight, 1e-5, self.x.len() / width, &mut out).expect("rms_norm");
        ops.read(&out, self.x.len()).expect("the output")
    }
}

/// A residual stream that a block's output is added to, and the norm of the sum; both come back.
struct AddNorm {
    norm: Norm,
    residual: Vec<f32>,
}

impl Case for AddNorm {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let Norm { x, weight: scale, dtype } = &self.norm;
        let width = scale.len();
        let (mut hidden, mut residual) = (upload(ops, x), upload(ops, &self.residual));
        let scale = weight(ops, scale, width, *dtype);
        let rows = x.len() / width;
        ops.add_rms_norm(&mut residual, &scale, 1e-5, rows, &mut hidden).expect("add_rms_norm");
        let mut both = ops.read(&hidden, x.len()).expect("the output");
        both.extend(ops.read(&residual, x.len()).expect("the sum"));
        both
    }
}

/// A table that starts at a token and may be a single row; some tokens are not in it.
struct Embed {
    table: Vec<f32>,
    width: usize,
    first: u32,
    tokens: Vec<u32>,
    dtype: DType,
}

impl Case for Embed {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let table = weight(ops, &self.table, self.width, self.dtype);
        let batch = Arc::new(Batch { tokens: self.tokens.clone(), ..Batch::default() });
        let step = ops.step(&batch, 0).expect("a step");
        let elements = self.tokens.len() * self.width;
        let mut out = poisoned(ops, elements);
        ops.embed(&table, self.first, &step, &mut out).expect("embed");
        ops.read(&out, elements).expect("the output")
    }
}

/// Normalises heads, then rotates them.
struct Rotate {
    qkv: Vec<f32>,
    heads: Heads,
    weights: Vec<f32>,
    table: Vec<f32>,
    positions: Vec<u32>,
    dtype: DType,
}

impl Case for Rotate {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let dim = self.heads.dim;
        let (queries, keys) = self.weights.split_at(dim);
        let (queries, keys) =
            (weight(ops, queries, dim, DType::F32), weight(ops, keys, dim, DType::F32));
        let table = weight(ops, &self.table, dim, DType::F32);
        let tokens = vec![0; self.positions.len()];
        let rows = self.positions.len() as u32;
        let batch = Batch {
            tokens,
            positions: self.positions.clone(),
            // Each row a sequence with a block of its own.
            spans: (0..rows).map(|row| Span { rows: row..row + 1, blocks: row..row + 1 }).collect(),
            blocks: (0..rows).map(BlockId).collect(),
            ..Batch::default()
        };
        let step = ops.step(&Arc::new(batch), 0).expect("a step");
        let heads = self.heads;
        let cache = CacheShape {
            blocks: self.positions.len(),
            block_tokens: 100,
            heads: heads.keys_values,
            dim,
            dtype: self.dtype,
        };
        let mut qkv = upload(ops, &self.qkv);
        let norm = HeadNorm { queries: &queries, keys: &keys, eps: 1e-6 };
        ops.head_norm(&mut qkv, &self.heads, &norm, self.positions.len()).expect("head_norm");
        let mut cache = ops.cache(cache).expect("a cache");
        let rotated = ops.rope_kv_store(&mut qkv, &heads, &table, &step, &mut cache);
        rotated.expect("rope_kv_store");
        let qkv = ops.read(&qkv, self.qkv.len()).expect("the output");
        // The keys are the cache's now; attention's own checks look at those.
        let queries = qkv.chunks(heads.fused()).map(|row| &row[..heads.queries * dim]);
        queries.flatten().copied().collect()
    }
}
