//! Every backend computes what the reference does, and a row alone equals the row in a batch.
//!
//! One list of shapes per operation, one line per backend at the foot. A check takes the backend
//! alone: the reference runs beside it on the same inputs. Outputs are filled with NaN first, so an
//! element that nobody wrote is found. Inputs are fresh in every run; a failure prints their seed.

/// The paged cache and attention over it.
mod attention;
/// Moving rows in and out of buffers, random numbers, comparisons.
mod bench;
/// Look-ups, norms, rotation, activations.
mod elementwise;
/// Products with weights.
mod linear;
/// Shrink and expand of mixed batches.
mod lora;
/// Tokens and logprobs from logits.
mod sample;

use std::io::Write;

use bench::{Bench, DTYPES, Promise};
use contract::tensor::DType;
use kernels::cpu::{Cpu, Isa};
use kernels::cuda::{self, Cuda};
use kernels::ops::Ops;

/// What the CPU backend promises: every row by itself, to the bit.
const CPU: Promise = Promise { activations: DType::F32, same_products: true, same_attention: true };

/// Holds one backend to the reference.
fn check<O: Ops>(name: &str, promise: Promise, backend: O) {
    let mut bench = Bench::new(name, promise, backend);
    elementwise::check(&mut bench);
    linear::check(&mut bench);
    attention::check(&mut bench);
    lora::check(&mut bench);
    sample::check(&mut bench);
}

#[test]
fn cpu_equals_reference_with_every_instruction_set() {
    for isa in Isa::available() {
        check(&format!("cpu {isa}"), CPU, Cpu::with_isa(1, isa).expect("no thread to start"));
    }
}

#[test]
fn cpu_equals_reference_with_several_threads() {
    check("cpu, 3 threads", CPU, Cpu::new(3).expect("3 threads"));
}

/// cuBLASLt adds in another order for another number of rows; and tensor cores, which attend to
/// several rows of 16 bits at once, in another order than what attends to one.
#[test]
fn cuda_equals_reference_with_every_element_type() {
    if let Err(why) = cuda::found() {
        // Written past the test's capture: a skipped test has to be seen.
        let _ = writeln!(std::io::stderr(), "skipped cuda: {why}");
        return;
    }
    for activations in DTYPES {
        let same_attention = activations == DType::F32;
        let promise = Promise { activations, same_products: false, same_attention };
        let backend = Cuda::open(0, activations, None).expect("a device");
        check(&format!("cuda {activations}"), promise, backend);
    }
}
