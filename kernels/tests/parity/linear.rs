//! Products with weights.

use contract::tensor::DType;
use kernels::ops::{Ops, Precision, WeightView};

use crate::bench::{Bench, Case, elements, poisoned, poisoned_as, upload, weight};

/// Rows, inputs, outputs: single ones, every tile height, ends inside panels, lines and tiles, and
/// enough inputs and outputs to go round a GPU's rings and multiprocessors more than once.
const SHAPES: [(usize, usize, usize); 28] = [
    (5, 72, 3100),
    (12, 200, 3100),
    (1, 1, 1),
    (1, 7, 5),
    (1, 256, 320),
    (2, 33, 17),
    (3, 64, 16),
    (4, 65, 95),
    (5, 127, 48),
    (6, 100, 50),
    (7, 96, 101),
    (8, 128, 160),
    (9, 31, 33),
    (15, 40, 1),
    (16, 1, 64),
    (17, 66, 49),
    (23, 257, 130),
    (64, 320, 112),
    (70, 1100, 79),
    (1, 4096, 300),
    (6, 2048, 1280),
    (13, 1088, 5000),
    (16, 64, 34500),
    (17, 1088, 4300),
    (32, 192, 30000),
    (33, 1024, 700),
    (47, 1088, 4300),
    (64, 64, 17100),
];

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    for (i, (rows, input, output)) in SHAPES.into_iter().enumerate() {
        for dtype in bench.dtypes() {
            let x = bench.random.values(rows * input);
            let weight = bench.random.values(output * input);
            let bias = (i % 2 == 0).then(|| bench.random.values(output));
            let out = if i % 3 == 0 { Precision::Full } else { Precision::Activation };
            let gemm = Gemm { x, input, weight, bias, dtype, out };
            let name = format!("gemm {rows} x {input} x {output} {dtype}");
            let together = bench.agree(&name, dtype, &gemm);
            for row in [0, rows / 2, rows - 1] {
                let x = gemm.x[row * input..][..input].to_vec();
                let alone = Gemm { x, ..gemm.clone() }.run(&mut bench.backend);
                let row = &together[row * output..][..output];
                bench.alike(&name, dtype, bench.promise.same_products, (&alone, row));
            }
        }
    }
    for (rows, input, width) in [
        (1, 64, 8),
        (5, 128, 1001),
        (8, 320, 2200),
        (16, 576, 40),
        (17, 64, 24),
        (31, 320, 2200),
        (50, 320, 2200),
    ] {
        for dtype in bench.dtypes() {
            let (x, weight) =
                (bench.random.values(rows * input), bench.random.values(2 * width * input));
            let gated = Gated { x, input, weight, dtype };
            bench.agree(&format!("gated {rows} x {input} x {width} {dtype}"), dtype, &gated);
        }
    }
    for (rows, input, width) in [(9, 64, 40), (530, 96, 128)] {
        let [scale, bias] = [0; 2].map(|_| bench.random.values(width));
        for dtype in bench.dtypes() {
            let x = bench.random.values(rows * input);
            let weight = bench.random.values(width * input);
            let (bias, out) = (Some(bias.clone()), Precision::Activation);
            let gemm = Gemm { x, input, weight, bias, dtype, out };
            let residual = bench.random.values(rows * width);
            let summed = Summed { gemm, residual, scale: scale.clone() };
            bench.agree(&format!("summed {rows} x {input} x {width} {dtype}"), dtype, &summed);
        }
    }
    for dtype in bench.dtypes() {
        let wide = elements(&bench.random.values(10 * 40), dtype);
        let other = elements(&bench.random.values(5 * 23), DType::F32);
        let x = bench.random.values(2 * 23);
        let stacked = Stacked { wide, other, x, dtype };
        bench.agree(&format!("stacked views {dtype}"), dtype, &stacked);
    }
}

/// `silu(x gate^T) * (x up^T)`.
struct Gated {
    x: Vec<f32>,
    input: usize,
    weight: Vec<f32>,
    dtype: DType,
}

impl Case for Gated {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let (rows, width) = (self.x.len() / self.input, self.weight.len() / self.input / 2);
        // Small sums: of a large one, the exponential makes much of a small rounding.
        let scaled: Vec<f32> = self.weight.iter().map(|weight| weight / 8.0).collect();
        let weight = weight(ops, &scaled, self.input, self.dtype);
        let x = upload(ops, &self.x);
        let (mut gate_up, mut out) = (poisoned(ops, 2 * rows * width), poisoned(ops, rows * width));
        let done = ops.gemm_silu_mul(&x, &weight, (rows, width), &mut gate_up, &mut out);
        done.expect("gemm_silu_mul");
        ops.read(&out, rows * width).expect("the output")
    }
}

/// `x weight^T + bias`.
#[derive(Clone)]
struct Gemm {
    x: Vec<f32>,
    input: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    dtype: DType,
    /// Of the output: logits are in full.
    out: Precision,
}

impl Case for Gemm {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let (rows, output) = (self.x.len() / self.input, self.weight.len() / self.input);
        let x = upload(ops, &self.x);
        let matrix = weight(ops, &self.weight, self.input, self.dtype);
        let bias = self.bias.as_ref().map(|bias| weight(ops, bias, output, self.dtype));
        let mut out = poisoned_as(ops, rows * output + 3, self.out);
        ops.gemm(&x, &matrix, bias.as_ref(), rows, &mut out).expect("gemm");
        let mut out = ops.read(&out, rows * output + 3).expect("the output");
        let beyond = out.split_off(rows * output);
        assert!(beyond.iter().all(|beyond| beyond.is_nan()), "wrote beyond its rows");
        out
    }
}

/// A product that is added to a residual stream, and its norm.
struct Summed {
    gemm: Gemm,
    residual: Vec<f32>,
    scale: Vec<f32>,
}

impl Case for Summed {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let Gemm { x, input, weight: values, bias, dtype, .. } = &self.gemm;
        let (rows, width) = (x.len() / input, self.scale.len());
        let matrix = weight(ops, values, *input, *dtype);
        let bias = bias.as_ref().map(|bias| weight(ops, bias, width, *dtype));
        let scale = weight(ops, &self.scale, width, *dtype);
        let (x, mut residual) = (upload(ops, x), upload(ops, &self.residual));
        let (norm, mut hidden) = ((&mut residual, &scale, 1e-5), poisoned(ops, rows * width));
        let done = ops.gemm_add_rms_norm(&x, (&matrix, bias.as_ref()), norm, rows, &mut hidden);
        done.expect("gemm_add_rms_norm");
        let mut all = ops.read(&hidden, rows * width).expect("the output");
        all.extend(ops.read(&residual, rows * width).expect("the sum"));
        all
    }
}

/// A weight of columns of a wider matrix, over zeros, over rows of another element type.
struct Stacked {
    wide: Vec<u8>,
    other: Vec<u8>,
    x: Vec<f32>,
    dtype: DType,
}

impl Case for Stacked {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let (dtype, cols) = (self.dtype, 23);
        let columns = &self.wide[9 * dtype.bytes()..];
        let views = [
            WeightView { dtype, rows: 10, cols, stride: 40, bytes: columns },
            WeightView { dtype, rows: 4, cols, stride: cols, bytes: &[] },
            WeightView { dtype: DType::F32, rows: 5, cols, stride: cols, bytes: &self.other },
        ];
        let weight = ops.weight(&views, dtype).expect("a weight");
        let x = upload(ops, &self.x);
        let mut out = poisoned(ops, 2 * 19);
        ops.gemm(&x, &weight, None, 2, &mut out).expect("gemm");
        let out = ops.read(&out, 2 * 19).expect("the output");
        assert!(out[10..14].iter().all(|zero| *zero == 0.0), "a view of zeros");
        out
    }
}
