//! `drystone bench offline`: prefill and decode beside the floor that memory bandwidth sets.
//!
//! The machine may be shared and its bandwidth may swing, so bandwidth is measured between the
//! steps, and every figure is also given as a ratio: to the floor, and of adapters to the base.

mod batches;
mod deployment;
mod generations;
mod measure;
pub mod policy;
mod shapes;
mod table;

use clap::ValueEnum;

use crate::Failure;
use crate::cli::Offline;

use measure::Bench;

/// Runs the bench and prints its table or JSON rows.
pub fn command(options: &Offline) -> Result<(), Failure> {
    let mut bench = Bench::start(options)?;
    let mut rows = bench.prefill()?;
    for &batch in &options.batch {
        rows.extend(bench.decode(batch)?);
    }
    let shape = options.shape.to_possible_value().expect("no shape is hidden: this is a bug");
    match options.json {
        true => table::json(shape.get_name(), options.lora_rank, &rows),
        false => table::text(&bench.title(), &rows),
    }
    Ok(())
}
