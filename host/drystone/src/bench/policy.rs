//! `drystone bench policy`: what a request pays for its policies.
//!
//! Calls go the way of a server's requests: through a started host with its scopes, bounds and
//! metrics, on a thread of the server's kind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::settings::{
    Allow, Breaker, Isolation, Limits, Mode, Plugin, Policy as Deployment, Scope,
};
use contract::policy::Policy;
use contract::policy::builtin::Builtin;
use contract::policy::hook::{Hook, OnError};
use contract::policy::replica::{Demand, Replica};
use contract::policy::subject::{Message, Route, Subject, Tenant};
use policy::host::Host;
use serde_json::json;

use crate::Failure;
use crate::cli::PolicyBench;

/// Time in which the host makes the next instances ready.
const PAUSE: Duration = Duration::from_micros(200);
/// Room for instances; a multiple of what one plugin keeps waiting.
const INSTANCES: u32 = 256;
/// Time that a guest which never answers gets.
const BUDGET: Duration = Duration::from_millis(5);

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
    if rows.is_empty() {
        let message = "nothing to measure: give --score, --request, --chunk or --spin a component";
        return Err(Failure::Usage(message.to_owned()));
    }
    match options.json {
        true => println!("{:#}", rows.iter().map(Row::json).collect::<serde_json::Value>()),
        false => print(&rows),
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
            ("on-request, a pooled instance", reused.clone()),
            ("on-request, a pre-warmed instance", warm.clone()),
            ("on-request, a cold instance", warm.cold()),
            ("on-request, a chain of ten, pooled", reused.times(10)),
            ("on-request, a chain of ten, pre-warmed", warm.times(10)),
        ];
        for (what, server) in servers {
            rows.push(request(what, &server.start()?, &subject("base"), calls).await);
        }
    }
    if let Some(file) = &options.chunk {
        rows.push(chunk("on-chunk, a pooled instance", &pooled(file).start()?, calls).await?);
        let warm = pooled(file).fresh();
        rows.push(chunk("on-chunk, a pre-warmed instance", &warm.start()?, calls).await?);
    }
    if let Some(file) = &options.spin {
        let (host, subject) = (pooled(file).start()?, subject("spin"));
        rows.push(request("killed after 5 ms of spinning", &host, &subject, calls.min(100)).await);
    }
    Ok(rows)
}

/// A server's plugins, all of the same component.
#[derive(Clone)]
struct Server {
    file: PathBuf,
    isolation: Isolation,
    enforced: usize,
    disabled: usize,
    instances: u32,
}

/// One plugin that keeps one instance.
fn pooled(file: &Path) -> Server {
    let file = file.to_owned();
    Server { file, isolation: Isolation::Pooled, enforced: 1, disabled: 0, instances: INSTANCES }
}

impl Server {
    /// Every call has an instance of its own, made before.
    fn fresh(self) -> Self {
        Self { isolation: Isolation::PerRequest, ..self }
    }

    /// Room for so few instances to each plugin that none wait.
    fn cold(&self) -> Self {
        const DISABLED: usize = 31;
        Self { disabled: DISABLED, instances: DISABLED as u32, ..self.clone() }
    }

    fn times(&self, plugins: usize) -> Self {
        Self { enforced: plugins, ..self.clone() }
    }

    fn start(&self) -> Result<Host, Failure> {
        let modes = [(Mode::Enforce, self.enforced), (Mode::Disabled, self.disabled)];
        let modes = modes.into_iter().flat_map(|(mode, n)| std::iter::repeat_n(mode, n));
        let plugins = modes.enumerate().map(|(i, mode)| self.plugin(i, mode)).collect();
        let (root, cache_dir) = (None, None);
        let instances_max = self.instances;
        let deployment = Deployment { plugins, root, cache_dir, instances_max, watch: false };
        let started = Host::start(&deployment, Builtin::new("base", []));
        started.map_err(|error| Failure::Plugin(error.to_string()))
    }

    fn plugin(&self, number: usize, mode: Mode) -> Plugin {
        Plugin {
            name: format!("bench-{number}"),
            file: self.file.clone(),
            sha256: None,
            hooks: None,
            scope: Scope::default(),
            mode,
            on_error: [OnError::Open; Hook::ALL.len()],
            isolation: self.isolation,
            limits: limits(),
            breaker: Breaker { failures: 0, window: BUDGET, cooldown: BUDGET },
            allow: everything(),
            config: json!({}),
            record: None,
        }
    }
}

fn limits() -> Limits {
    Limits {
        cpu: BUDGET,
        memory_bytes: 32 << 20,
        output_bytes: 64 << 10,
        host_copy_bytes: 1 << 20,
        concurrency: 64,
    }
}

fn everything() -> Allow {
    Allow {
        headers: vec!["x-tenant".to_owned()],
        messages: true,
        text: true,
        kv_bytes: 1 << 20,
        clock: true,
        random: true,
        metrics: true,
        adapters: true,
        replicas: true,
        wasi: true,
    }
}

async fn score(host: &Host, calls: usize) -> Row {
    let (subject, demand) =
        (subject("base"), Demand { prompt_tokens: 200, max_tokens: 64, affinity: 7 });
    let replica = |running| Replica { running, local: true, ..Replica::default() };
    let replicas: Vec<_> = (0..16).map(replica).collect();
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        let _ = host.score_replicas(&subject, &demand, &replicas).await;
        times.push(start.elapsed());
    }
    Row::new("score-replicas of 16, a pooled instance", times)
}

async fn request(what: &'static str, host: &Host, subject: &Subject, calls: usize) -> Row {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        host.on_request(subject).await;
        times.push(start.elapsed());
        std::thread::sleep(PAUSE);
    }
    Row::new(what, times)
}

async fn chunk(what: &'static str, host: &Host, calls: usize) -> Result<Row, Failure> {
    let subject = Arc::new(subject("base"));
    let none = || Failure::Plugin("the component does not answer on-chunk".to_owned());
    let mut filter = host.filter(&subject, 0).ok_or_else(none)?;
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        let released = filter.push(" quick", false).await;
        times.push(start.elapsed());
        if !released.is_ok_and(|released| !released.stopped) {
            return Err(Failure::Plugin("the component ended the text".to_owned()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Row::new(what, times))
}

fn subject(model: &str) -> Subject {
    let content = "Which of these invoices are overdue, and by how many days?".to_owned();
    Subject {
        id: "bench".into(),
        tenant: Tenant("acme".to_owned()),
        model: model.to_owned(),
        route: Route::Chat,
        prompt_tokens: 200,
        max_tokens: Some(64),
        streamed: true,
        messages: [Message { role: "user".to_owned(), content }].into(),
        ..Subject::default()
    }
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

fn print(rows: &[Row]) {
    println!("{:42} {:>6} {:>10} {:>10}", "", "calls", "median us", "p99 us");
    for row in rows {
        let (median, p99) = (row.percentile(50), row.percentile(99));
        println!("{:42} {:>6} {median:>10.2} {p99:>10.2}", row.what, row.times.len());
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
