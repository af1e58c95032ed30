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

use bench::Bench;
use kernels::cpu::{Cpu, Isa};
use kernels::ops::Ops;
use kernels::reference::Reference;

/// Holds one backend to the reference.
fn check<O: Ops>(name: &str, make: impl Fn() -> O) {
    let mut bench = Bench::new(name, Reference, make());
    elementwise::check(&mut bench);
    linear::check(&mut bench);
    attention::check(&mut bench);
    lora::check(&mut bench);
    sample::check(&mut bench);
}

#[test]
fn cpu_equals_reference_with_every_instruction_set() {
    for isa in Isa::available() {
        check(&format!("cpu {isa}"), || Cpu::with_isa(1, isa).expect("no thread to start"));
    }
}

#[test]
fn cpu_equals_reference_with_several_threads() {
    check("cpu, 3 threads", || Cpu::new(3).expect("3 threads"));
}
