//! What was measured, as a table for people or JSON rows for programs.

use serde_json::json;

use crate::bench::generations::Name;

/// One run.
#[derive(Debug)]
pub struct Row {
    /// Prefill of one prompt, or decode.
    pub phase: &'static str,
    /// Rows of a prefill, sequences of a decode.
    pub batch: usize,
    /// Kind of the adapters; `None` is the base alone.
    pub kind: Option<Name>,
    /// How many different ones.
    pub adapters: usize,
    /// Median time of a step.
    pub step_ms: f64,
    /// Tokens per step over `step_ms`.
    pub tokens_per_s: f64,
    /// The bytes that a step must read over the bandwidth measured beside it.
    pub floor_ms: f64,
    /// Memory bandwidth measured beside the run.
    pub bandwidth_gb_s: f64,
    /// Time relative to the base in the same run.
    pub to_base: f64,
    /// Where it is measured.
    pub idle: Option<Idle>,
}

/// How long the device stood idle before steps, each behind the one before.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Half of them at most.
    pub median_us: f64,
    /// All but one of a hundred at most.
    pub p99_us: f64,
}

/// Prints a table.
pub fn text(title: &str, rows: &[Row]) {
    println!("{title}");
    println!(
        "{:8} {:>5} {:>5} {:>8} {:>9} {:>9} {:>8} {:>8} {:>7} {:>8} {:>8}",
        "phase",
        "batch",
        "lora",
        "adapters",
        "tokens/s",
        "step ms",
        "floor ms",
        "of floor",
        "GB/s",
        "to base",
        "idle us"
    );
    for row in rows {
        println!(
            "{:8} {:5} {:>5} {:8} {:9.1} {:9.2} {:8.2} {:7.0}% {:7.1} {:8.3} {:>8}",
            row.phase,
            row.batch,
            row.kind.map_or("-", Name::label),
            row.adapters,
            row.tokens_per_s,
            row.step_ms,
            row.floor_ms,
            row.floor_ms / row.step_ms * 100.0,
            row.bandwidth_gb_s,
            row.to_base,
            row.idle.map_or("-".to_owned(), |idle| format!("{:.1}", idle.median_us)),
        );
    }
}

/// Prints one JSON array.
pub fn json(shape: &str, lora_rank: usize, rows: &[Row]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "shape": shape,
                "phase": row.phase,
                "batch": row.batch,
                "lora_kind": row.kind.map(Name::label),
                "lora_rank": row.kind.map(|_| lora_rank),
                "adapters": row.adapters,
                "tokens_per_s": row.tokens_per_s,
                "step_ms": row.step_ms,
                "floor_ms": row.floor_ms,
                "bandwidth_gb_s": row.bandwidth_gb_s,
                "to_base": row.to_base,
                "idle_us_median": row.idle.map(|idle| idle.median_us),
                "idle_us_p99": row.idle.map(|idle| idle.p99_us),
            })
        })
        .collect();
    println!("{}", serde_json::Value::from(rows));
}
