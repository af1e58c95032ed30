//! `drystone bench policy`: what a request pays for its policies.
//!
//! Calls go the way of a server's requests: through a started host with its scopes, bounds and
//! metrics, on a thread of the server's kind.

mod calls;
mod server;
mod wear;

use std::time::Duration;

use serde_json::{Value, json};

use crate::Failure;
use crate::cli::PolicyBench;

use calls::{chunk, request, score, subject};
use server::pooled;

/// One row of the table.
struct Row {
    what: &'static str,
    /// Sorted.
    times: Vec<Duration>,
}

/// Measures what there is a component for, and prints a table or JSON rows.
pub fn command(options: &PolicyBench) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(rows(options))?;
    let memory = match &options.endurance {
        Some(file) => runtime.block_on(wear::memory(file))?,
        None => Vec::new(),
    };
    if rows.is_empty() && memory.is_empty() {
        let message = "nothing to measure: give --score, --request, --chunk, --spin or --endurance \
                       a component";
        return Err(Failure::Usage(message.to_owned()));
    }
    match options.json {
        true => {
            let rows = rows.iter().map(Row::json).chain(memory.iter().map(Memory::json));
            println!("{:#}", rows.collect::<Value>());
        }
        false => print(&rows, &memory),
    }
    Ok(())
}

async fn rows(options: &PolicyBench) -> Result<Vec<Row>, Failure> {
    let (mut rows, calls) = (Vec::new(), options.calls);
    if let Some(file) = &options.score {
        rows.push(score(&pooled(file).start()?, calls).await);
    }
    if let Some(file) = &options.request {
        let (reused, warm) = (pooled(file), pooled(file).fresh());
        let servers = [
            ("on-request, pooled", reused.clone()),
            ("on-request, pre-warmed", warm.clone()),
            ("on-request, cold", warm.cold()),
            ("on-request, a chain of ten, pooled", reused.times(10)),
            ("on-request, a chain of ten, pre-warmed", warm.times(10)),
        ];
        for (what, server) in servers {
            rows.push(request(what, &server.start()?, &subject("base"), calls).await);
        }
        rows.push(wear::live(file).await?);
    }
    if let Some(file) = &options.chunk {
        rows.push(chunk("on-chunk, pooled", &pooled(file).start()?, calls).await?);
        let warm = pooled(file).fresh();
        rows.push(chunk("on-chunk, pre-warmed", &warm.start()?, calls).await?);
    }
    if let Some(file) = &options.spin {
        let (host, subject) = (pooled(file).start()?, subject("spin"));
        rows.push(request("killed after 5 ms of spinning", &host, &subject, calls.min(100)).await);
        rows.extend(wear::beside(file, calls.min(1000)).await?);
    }
    Ok(rows)
}

impl Row {
    fn new(what: &'static str, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { what, times }
    }

    /// Microseconds that so many of a hundred calls did not exceed.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.times.len().saturating_sub(1);
        let time = self.times.get(last * percent / 100);
        time.copied().unwrap_or_default().as_secs_f64() * 1e6
    }

    fn json(&self) -> serde_json::Value {
        let (median, p99) = (self.percentile(50), self.percentile(99));
        json!({ "what": self.what, "calls": self.times.len(), "median_us": median, "p99_us": p99 })
    }
}

fn print(rows: &[Row], memory: &[Memory]) {
    if !rows.is_empty() {
        println!("{:42} {:>6} {:>10} {:>10}", "", "calls", "median us", "p99 us");
    }
    for row in rows {
        let (median, p99) = (row.percentile(50), row.percentile(99));
        println!("{:42} {:>6} {median:>10.2} {p99:>10.2}", row.what, row.times.len());
    }
    for Memory { when, kib } in memory {
        println!("{when:48} {kib:>10} KiB");
    }
}

/// Resident memory of the process at some moment.
struct Memory {
    when: &'static str,
    kib: u64,
}

impl Memory {
    fn now(when: &'static str) -> Result<Self, Failure> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        let none = || Failure::Plugin("this system does not say what is resident".to_owned());
        Ok(Self { when, kib: kib.ok_or_else(none)? })
    }

    fn json(&self) -> Value {
        json!({ "what": self.when, "resident_kib": self.kib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_sorted_times() {
        let times = (0..=100).rev().map(Duration::from_micros).collect();
        let row = Row::new("x", times);
        assert!((row.percentile(50) - 50.0).abs() < 1e-9);
        assert!((row.percentile(99) - 99.0).abs() < 1e-9);
        assert!(Row::new("none", Vec::new()).percentile(99).abs() < 1e-9);
    }
}
