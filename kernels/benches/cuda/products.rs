//! Products with weights of the 8B shape.

use contract::tensor::DType;
use kernels::cuda::Cuda;
use kernels::error::Result;
use kernels::ops::{Ops, Precision, WeightView};

use crate::{BYTES, activations, line, time};

/// Outputs and inputs: queries, keys and values; attention output; gate and up; down; LM head; and
/// the same of one rank of a 70B at TP8.
const SHAPES: [(&str, usize, usize); 9] = [
    ("qkv", 6144, 4096),
    ("o", 4096, 4096),
    ("gate_up", 28672, 4096),
    ("down", 4096, 14336),
    ("head", 128_256, 4096),
    ("70b qkv", 1280, 8192),
    ("70b o", 8192, 1024),
    ("70b gate_up", 7168, 8192),
    ("70b down", 8192, 3584),
];

const DECODE_ROWS: [usize; 6] = [1, 8, 16, 17, 32, 64];

const PREFILL_ROWS: usize = 2048;

pub fn run(cuda: &mut Cuda) -> Result<()> {
    for (name, outputs, inputs) in SHAPES {
        let bytes = outputs * inputs * DType::Bf16.bytes();
        let rows = matrix(outputs, inputs);
        let part = WeightView {
            dtype: DType::Bf16,
            rows: outputs / 32,
            cols: inputs,
            stride: inputs,
            bytes: &rows,
        };
        let copies = BYTES.div_ceil(bytes);
        let weights = (0..copies).map(|_| cuda.weight(&[part; 32], DType::Bf16));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let x = activations(cuda, PREFILL_ROWS * inputs)?;
        let precision = if name == "head" { Precision::Full } else { Precision::Activation };
        let mut out = cuda.buf(PREFILL_ROWS * outputs, precision)?;
        for rows in DECODE_ROWS.into_iter().chain([PREFILL_ROWS]) {
            let each = time(cuda, copies, |cuda| {
                weights.iter().try_for_each(|weight| cuda.gemm(&x, weight, None, rows, &mut out))
            })?;
            line(&format!("gemm {name} {outputs} x {inputs}, {rows} rows"), each, bytes);
        }
    }
    Ok(())
}

/// A 32nd of a matrix of bf16 between 2^-7 and 2^-5 in size.
fn matrix(outputs: usize, inputs: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let element = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (0x3c00 | (state >> 16) as u16 & 0x80ff).to_le_bytes()
    };
    (0..outputs / 32 * inputs).flat_map(element).collect()
}
