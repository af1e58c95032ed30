//! How near the CUDA backend comes to the ceilings of the card, operation by operation.
//!
//! `cargo bench -p kernels --bench cuda`. Launches are recorded in a graph and replayed, so that
//! the device's time is measured and not the host's. Operands change from call to call, more of
//! them than the cache holds, as they do from layer to layer. "Of the floor" is the time in which
//! the bytes can be read at [`BANDWIDTH`], over the time taken.

/// Attention over caches of many layers.
mod attention;
/// Shrink and expand for batches of different adapters.
mod lora;
/// Products with weights of the 8B shape.
mod products;

use std::time::Duration;

use kernels::cuda::{Cuda, found};
use kernels::error::Result;
use kernels::ops::{Ops, Precision};

/// Bytes a second that a copy on an H200 reads and writes.
const BANDWIDTH: f64 = 4.3e12;

/// Operands of one kind held at a time, in bytes: several times the cache.
const BYTES: usize = 400 << 20;

const REPLAYS: usize = 20;

fn main() -> Result<()> {
    let devices = match found() {
        Ok(devices) => devices,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    println!("{}, {:?}", devices[0].name, devices[0].capability);
    let mut cuda = Cuda::open(devices[0].ordinal, contract::tensor::DType::Bf16, None)?;
    products::run(&mut cuda)?;
    lora::run(&mut cuda)?;
    attention::run(&mut cuda)
}

/// The device's time for one of `calls` calls that `work` makes: the median of three.
fn time(
    cuda: &mut Cuda,
    calls: usize,
    mut work: impl FnMut(&mut Cuda) -> Result<()>,
) -> Result<Duration> {
    work(cuda)?;
    cuda.synchronize()?;
    let graph = cuda.record(work)?;
    cuda.replay(&graph, 3)?;
    let mut times = [Duration::ZERO; 3];
    for time in &mut times {
        *time = cuda.replay(&graph, REPLAYS)? / (REPLAYS * calls) as u32;
    }
    times.sort();
    Ok(times[1])
}

/// One aligned line a case.
fn line(what: &str, time: Duration, bytes: usize) {
    let seconds = time.as_secs_f64();
    let (us, rate) = (seconds * 1e6, bytes as f64 / seconds);
    println!(
        "{what:44} {us:8.1} us {:7.0} GB/s {:4.0} % of the floor",
        rate / 1e9,
        100.0 * rate / BANDWIDTH
    );
}

/// Activations of small values, none of them zero.
fn activations(cuda: &mut Cuda, elements: usize) -> Result<<Cuda as Ops>::Buf> {
    let mut buf = cuda.buf(elements, Precision::Activation)?;
    let values: Vec<f32> = (0..elements).map(|i| (i * 7919 % 255) as f32 / 128.0 - 1.0).collect();
    cuda.write(&values, &mut buf)?;
    Ok(buf)
}
