//! How near the products of the CPU backend come to the machine's ceilings, on one thread.
//!
//! `cargo bench -p kernels`. Weights change from call to call, more of them than caches hold, as in
//! a model. A figure is the median of several passes; "of the floor" is the time that reading the
//! weights must take at the bandwidth measured just before, over the time taken.

use std::time::Instant;

use contract::tensor::DType;
use kernels::cpu::{Cpu, bandwidth};
use kernels::ops::{Ops, Precision, WeightView};

/// Outputs and inputs of TinyLlama's layers: attention, feed-forward, language model head.
const SHAPES: [(usize, usize); 3] = [(2048, 2048), (5632, 2048), (32000, 2048)];

const ROWS: [usize; 4] = [1, 8, 64, 512];

/// Weights held at a time.
const BYTES: usize = 512 << 20;

const PASSES: usize = 7;

fn main() -> kernels::error::Result<()> {
    let mut cpu = Cpu::new(1)?;
    println!("{}, 1 thread", cpu.isa());
    println!("   out x in   type rows      us   GB/s of the floor  GFLOP/s");
    for dtype in [DType::Bf16, DType::F32] {
        for (output, input) in SHAPES {
            let count = (BYTES / (output * input * dtype.bytes())).max(1);
            let bytes = noise(output * input, dtype);
            let view =
                WeightView { dtype, rows: output, cols: input, stride: input, bytes: &bytes };
            let weights = (0..count).map(|_| cpu.weight(&[view], dtype));
            let weights = weights.collect::<kernels::error::Result<Vec<_>>>()?;
            for rows in ROWS {
                let floor = bandwidth(1)?;
                let seconds = time(&mut cpu, &weights, (output, input, rows))?;
                let gigabytes = (output * input * dtype.bytes()) as f64 / seconds / 1e9;
                let gigaflops = (2 * output * input * rows) as f64 / seconds / 1e9;
                print!("{output:6} x {input} {:>6} {rows:4} ", dtype.to_string());
                let (micros, percent) = (seconds * 1e6, 100.0 * gigabytes / floor);
                println!("{micros:7.0} {gigabytes:6.1} {percent:10.0} % {gigaflops:8.1}");
            }
        }
    }
    Ok(())
}

/// Seconds that one product takes.
fn time<O: Ops>(
    ops: &mut O,
    weights: &[O::Weight],
    (output, input, rows): (usize, usize, usize),
) -> kernels::error::Result<f64> {
    let mut x = ops.buf(rows * input, Precision::Activation)?;
    let values: Vec<f32> = (0..rows * input).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    ops.write(&values, &mut x)?;
    let mut out = ops.buf(rows * output, Precision::Activation)?;
    let calls = weights.len().min(1 + 256 / rows);
    let mut passes = Vec::new();
    for pass in 0..PASSES {
        let start = Instant::now();
        for call in 0..calls {
            let weight = &weights[(pass * calls + call) % weights.len()];
            ops.gemm(&x, weight, None, rows, &mut out)?;
        }
        passes.push(start.elapsed().as_secs_f64() / calls as f64);
    }
    passes.sort_by(f64::total_cmp);
    Ok(passes[PASSES / 2])
}

/// Elements of varied bits, all of them small numbers.
fn noise(elements: usize, dtype: DType) -> Vec<u8> {
    let value = |i: usize| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
    // The last two bytes of an f32 are a bf16.
    let element = |i| (value(i) - 0.5).to_le_bytes().into_iter().skip(4 - dtype.bytes());
    (0..elements).flat_map(element).collect()
}
