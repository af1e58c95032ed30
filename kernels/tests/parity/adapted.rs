//! Products of decode together with what adapters add.

use contract::adapter::Exchange;
use kernels::error::Result;
use kernels::ops::{Ops, Precision, Rows};

use crate::bench::{Bench, Case, poisoned, poisoned_as, upload, weight};
use crate::lora::{Lora, Share, local_pair};

/// Inputs, and outputs of two targets: some are copied in slices, some are not cut for that, and
/// some go round a GPU's rings and share tiles. Where both are alike, they may be gated.
type Site = (usize, [usize; 2]);

const SMALL: [Site; 3] = [(128, [128, 40]), (64, [192, 192]), (192, [37, 11])];

const LARGE: [Site; 3] = [(1088, [640, 640]), (5120, [64, 32]), (64, [4480, 4480])];

/// Of two targets: lora rank, blocks of A, blocks of B.
type Slots = [[Option<(usize, usize, usize)>; 2]; 5];

const EVEN: Slots = [
    [Some((16, 1, 1)), Some((16, 1, 1))],
    [Some((64, 1, 1)), None],
    [Some((128, 1, 8)), Some((24, 1, 1))],
    [None, Some((256, 1, 1))],
    [Some((8, 2, 1)), Some((96, 1, 1))],
];

const ODD: Slots = [
    [Some((1, 1, 1)), Some((3, 1, 1))],
    [Some((12, 1, 1)), Some((6, 1, 1))],
    [Some((36, 4, 1)), None],
    [None, Some((33, 1, 1))],
    [Some((7, 1, 1)), Some((20, 1, 1))],
];

const MIXES: [&[Share]; 7] = [
    &[(Some(2), 1)],
    &[(None, 2), (Some(0), 1), (Some(1), 1), (Some(2), 1), (Some(3), 1), (Some(4), 2)],
    &[(Some(4), 8)],
    &[(Some(1), 13), (None, 3)],
    &[(Some(3), 1), (Some(0), 11), (Some(4), 1), (Some(2), 6), (Some(1), 2), (None, 1)],
    &[(Some(2), 31), (Some(0), 1)],
    &[(Some(0), 20), (Some(1), 19)],
];

pub fn check<O: Ops>(bench: &mut Bench<O>) {
    check_sites(bench, SMALL, &MIXES);
    [192, 2176, 5120].into_iter().for_each(|width| check_prefill(bench, width));
}

/// So many rows that a product adds to the residual stream itself, and segments long enough for
/// kernels that take whole rows of it, between others.
fn check_prefill<O: Ops>(bench: &mut Bench<O>, width: usize) {
    let (input, targets) = (128, [width, 0]);
    let segments =
        [(Some(0), 300), (None, 30), (Some(2), 200), (Some(1), 257), (Some(4), 261), (Some(0), 3)];
    let rows = segments.iter().map(|(_, rows)| *rows as usize).sum::<usize>();
    let slots = EVEN.map(|pairs| {
        let (rank, a_blocks, b_blocks) = pairs[0]?;
        let shape = (input, (0, targets[0]));
        let blocks = (rank, a_blocks, b_blocks);
        Some(local_pair(&mut bench.random, shape, blocks, Exchange::None))
    });
    for dtype in bench.dtypes() {
        let lora = Lora {
            slots: slots.iter().map(|pair| vec![pair.clone()]).collect(),
            segments: segments.to_vec(),
            x: bench.random.values(rows * input),
            y: vec![0.0; rows * targets[0]],
            exchange: Exchange::None,
            dtype,
            decode: false,
            targets,
        };
        let weight = bench.random.values(targets[0] * input);
        let norm = normed(bench, &lora, &weight);
        bench.agree(&format!("adapted {rows} x {input} x {targets:?}, {dtype}"), dtype, &norm);
    }
}

/// The reference takes its time: not all mixes.
pub fn check_large<O: Ops>(bench: &mut Bench<O>) {
    check_sites(bench, LARGE, &MIXES[2..]);
}

fn check_sites<O: Ops>(bench: &mut Bench<O>, sites: [Site; 3], mixes: &[&[Share]]) {
    for (input, targets) in sites {
        for slots in [EVEN, ODD] {
            // Blocks are to come out even.
            let fits = |outputs: usize, blocks: usize| outputs.is_multiple_of(blocks);
            let slots = slots.map(|pairs| {
                let mut pair = |target: usize| {
                    let (rank, a_blocks, b_blocks) = pairs[target]?;
                    let b_blocks = if fits(targets[target], b_blocks) { b_blocks } else { 1 };
                    let shape = (input, (target, targets[target]));
                    let blocks = (rank, a_blocks, b_blocks);
                    Some(local_pair(&mut bench.random, shape, blocks, Exchange::None))
                };
                vec![pair(0), pair(1)]
            });
            for segments in mixes {
                check_mix(bench, (input, targets), slots.to_vec(), segments);
            }
        }
    }
}

fn check_mix<O: Ops>(
    bench: &mut Bench<O>,
    (input, targets): (usize, [usize; 2]),
    slots: Vec<Vec<Option<contract::adapter::LocalPair>>>,
    segments: &[Share],
) {
    let rows: u32 = segments.iter().map(|(_, rows)| rows).sum();
    let outputs: usize = targets.iter().sum();
    for dtype in bench.dtypes() {
        // Small sums: of a large one, the exponential makes much of a small rounding.
        let x = bench.random.values(rows as usize * input).iter().map(|x| x / 8.0).collect();
        let lora = Lora {
            slots: slots.clone(),
            segments: segments.to_vec(),
            x,
            y: vec![0.0; rows as usize * outputs],
            exchange: Exchange::None,
            dtype,
            decode: true,
            targets,
        };
        let weight = bench.random.values(outputs * input);
        let bias = rows.is_multiple_of(2).then(|| bench.random.values(outputs));
        let (behind, norm) = (Behind::Nothing, normed(bench, &lora, &weight));
        let plain = Adapted { lora: lora.clone(), weight: weight.clone(), bias, behind };
        let name = format!("adapted {rows} x {input} x {targets:?}, {dtype}");
        bench.agree(&name, dtype, &plain);
        bench.agree(&format!("{name}, normed"), dtype, &norm);
        for adapts in [true, false] {
            let first = normed(bench, &norm.lora, &norm.weight);
            let between = Between::new(bench, first, adapts);
            bench.agree(&format!("{name}, a norm between, {adapts}"), dtype, &between);
        }
        if targets[0] == targets[1] {
            let scaled = weight.iter().map(|weight| weight / 8.0).collect();
            let behind = Behind::Activation;
            let gated = Adapted { lora, weight: scaled, bias: None, behind };
            bench.agree(&format!("{name}, gated"), dtype, &gated);
        }
    }
}

/// The first target only, added to a residual stream.
fn normed<O: Ops>(bench: &mut Bench<O>, lora: &Lora, weight: &[f32]) -> Adapted {
    let (rows, width) = (lora.rows(), lora.targets[0]);
    let slots = lora.slots.iter().map(|pairs| pairs[..1].to_vec()).collect();
    let lora = Lora { slots, targets: [width, 0], ..lora.clone() };
    let weight = weight[..width * lora.input()].to_vec();
    let (residual, scale) = (bench.random.values(rows * width), bench.random.values(width));
    Adapted { lora, weight, bias: None, behind: Behind::Norm { residual, scale } }
}

/// A product with what adapters add.
struct Adapted {
    lora: Lora,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    behind: Behind,
}

/// What is done with the result, in one operation.
enum Behind {
    Nothing,
    /// Of a gate and of what it lets through.
    Activation,
    /// It is added to the residual stream, which is normalised.
    Norm {
        residual: Vec<f32>,
        scale: Vec<f32>,
    },
}

impl Case for Adapted {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let Self { lora, behind, .. } = self;
        let site = lora.site(ops);
        let step = ops.step(&lora.batch(), lora.rows() + 3).expect("a step");
        let mut x = lora.x.clone();
        // A row that pads the step is nobody's: it may hold anything.
        x.resize(step.rows() * lora.input(), f32::NAN);
        let x = upload(ops, &x);
        let outputs: usize = lora.targets.iter().sum();
        let matrix = weight(ops, &self.weight, lora.input(), lora.dtype);
        let bias = self.bias.as_ref().map(|bias| weight(ops, bias, outputs, lora.dtype));
        let len = ops.lora_len(&site, &step, Exchange::None);
        let mut h = poisoned_as(ops, len.max(1), Precision::Full);
        let mut y = poisoned(ops, step.rows() * outputs);
        let mut out = poisoned(ops, step.rows() * outputs / 2);
        let (both, adapters) = ((&matrix, bias.as_ref()), (&site, &step, &mut h));
        match behind {
            Behind::Nothing => {
                ops.adapted_gemm(&x, both, adapters, &mut y).expect("adapted_gemm");
            }
            Behind::Activation => {
                let (width, out) = (outputs / 2, &mut out);
                let done = ops.adapted_gemm_silu_mul(&x, (&matrix, width), adapters, &mut y, out);
                done.expect("adapted_gemm_silu_mul");
                return ops.read(out, lora.rows() * width).expect("the output");
            }
            Behind::Norm { residual, scale } => {
                let mut residual = residual.clone();
                residual.resize(step.rows() * outputs, f32::NAN);
                let (mut residual, scale) =
                    (upload(ops, &residual), weight(ops, scale, outputs, lora.dtype));
                let norm = (&mut residual, &scale, 1e-5);
                let done = ops.adapted_gemm_add_rms_norm(&x, both, adapters, norm, &mut y);
                done.expect("adapted_gemm_add_rms_norm");
                let mut all = ops.read(&y, lora.rows() * outputs).expect("the output");
                all.extend(ops.read(&residual, lora.rows() * outputs).expect("the sum"));
                return all;
            }
        }
        ops.read(&y, lora.rows() * outputs).expect("the output")
    }
}

/// A norm between two products, the second of a gate and of what it lets through, in one launch of
/// decode: what is left of the norm by then is a backend's own affair.
struct Between {
    first: Adapted,
    /// Whether adapters add to the first product.
    adapts: bool,
    gate_up: Vec<f32>,
}

/// Outputs of the gate.
const GATED: usize = 40;

impl Between {
    fn new<O: Ops>(bench: &mut Bench<O>, first: Adapted, adapts: bool) -> Self {
        let width = first.lora.targets[0];
        let values = bench.random.values(2 * GATED * width);
        // Small sums, as above.
        let scale = 1.0 / (width as f32).sqrt();
        Self { first, adapts, gate_up: values.iter().map(|value| value * scale).collect() }
    }
}

impl Case for Between {
    fn run<O: Ops>(&self, ops: &mut O) -> Vec<f32> {
        let Adapted { lora, weight: values, behind, .. } = &self.first;
        let Behind::Norm { residual, scale } = behind else { unreachable!("it is normed") };
        let (site, width, dtype) = (lora.site(ops), lora.targets[0], lora.dtype);
        let step = ops.step(&lora.batch(), lora.rows() + 3).expect("a step");
        let padded = |values: &[f32], width: usize| {
            let mut values = values.to_vec();
            values.resize(step.rows() * width, f32::NAN);
            values
        };
        let x = upload(ops, &padded(&lora.x, lora.input()));
        let mut residual = upload(ops, &padded(residual, width));
        let matrix = weight(ops, values, lora.input(), dtype);
        let scale = weight(ops, scale, width, dtype);
        let next = weight(ops, &self.gate_up, width, dtype);
        let len = ops.lora_len(&site, &step, Exchange::None);
        let mut h = poisoned_as(ops, len.max(1), Precision::Full);
        let mut hidden = poisoned(ops, step.rows() * width);
        let mut gate_up = poisoned(ops, step.rows() * 2 * GATED);
        let mut out = poisoned(ops, step.rows() * GATED);
        let done = ops.launch(&step, |ops| -> Result<()> {
            let (both, norm) = ((&matrix, None), (&mut residual, &scale, 1e-5));
            match self.adapts {
                true => {
                    let adapters = (&site, &step, &mut h);
                    ops.adapted_gemm_add_rms_norm(&x, both, adapters, norm, &mut hidden)?;
                }
                false => ops.gemm_add_rms_norm(&x, both, norm, step.rows(), &mut hidden)?,
            }
            ops.gemm_silu_mul(&hidden, &next, (step.rows(), GATED), &mut gate_up, &mut out)
        });
        done.expect("two products and a norm between them");
        let mut all = ops.read(&out, lora.rows() * GATED).expect("the output");
        all.extend(ops.read(&residual, lora.rows() * width).expect("the sum"));
        all
    }
}
