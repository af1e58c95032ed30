//! Every backend computes what the reference does, and a row alone equals the row in a batch.
//!
//! One list of shapes per operation, one line per backend at the foot. A check takes the backend
//! alone: the reference runs beside it on the same inputs. Outputs are filled with NaN first, so an
//! element that nobody wrote is found. Inputs are fresh in every run; a failure prints their seed.

/// Products of decode with what adapters add.
mod adapted;
/// Products to queries, keys and values, and attention behind them.
mod attend;
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
use std::sync::{LazyLock, Once};

use bench::{Bench, Promise};
use contract::tensor::DType;
use kernels::cpu::{Cpu, Isa};
use kernels::cuda::{self, Cuda};
use kernels::ops::Ops;
use tempfile::TempDir;

/// What the CPU backend promises: every row by itself, to the bit.
const CPU: Promise = Promise { activations: DType::F32, same_products: true, same_attention: true };

/// Holds one backend to the reference.
fn check<O: Ops>(name: &str, promise: Promise, backend: O) {
    let mut bench = Bench::new(name, promise, backend);
    elementwise::check(&mut bench);
    linear::check(&mut bench);
    attention::check(&mut bench);
    attend::check(&mut bench);
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

/// Kernels are compiled once for all tests.
static KERNELS: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a temporary folder"));

/// Written past the test's capture: a skipped test has to be seen, and once is enough.
static SKIPPED: Once = Once::new();

/// cuBLASLt adds in another order for another number of rows; and tensor cores, which attend to
/// several rows of 16 bits at once, in another order than what attends to one.
fn cuda_equals_reference(activations: DType, check: impl Fn(&mut Bench<Cuda>)) {
    if let Err(why) = cuda::found() {
        SKIPPED.call_once(|| _ = writeln!(std::io::stderr(), "skipped cuda: {why}"));
        return;
    }
    let same_attention = activations == DType::F32;
    let promise = Promise { activations, same_products: false, same_attention };
    let backend = Cuda::open(0, activations, Some(KERNELS.path())).expect("a device");
    check(&mut Bench::new(&format!("cuda {activations}"), promise, backend));
}

/// A test of each kind of operation for each element type of activations: `compute-sanitizer` takes
/// its time over every one, and they can run at once.
macro_rules! cuda_equals_reference {
    ($($operations:ident: $check:path,)*) => {
        mod cuda_equals_reference {
            $(mod $operations {
                use contract::tensor::DType;

                #[test]
                fn f32() {
                    crate::cuda_equals_reference(DType::F32, $check);
                }

                #[test]
                fn f16() {
                    crate::cuda_equals_reference(DType::F16, $check);
                }

                #[test]
                fn bf16() {
                    crate::cuda_equals_reference(DType::Bf16, $check);
                }
            })*
        }
    };
}

cuda_equals_reference! {
    row_by_row: crate::elementwise::check,
    in_products: crate::linear::check,
    in_attention: crate::attention::check,
    in_products_with_attention: crate::attend::check,
    with_adapters: crate::lora::check,
    in_adapted_products: crate::adapted::check,
    in_large_adapted_products: crate::adapted::check_large,
    in_draws: crate::sample::check,
}
