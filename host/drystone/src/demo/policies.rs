//! Shows the demo's three policies at work: one routes, one redacts, one keeps the books.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::demo::THINGS;
use crate::demo::ask::{self, Question};

/// A model that is not served under this name: the router finds its adapter by a header, and the
/// redactor looks at its answers alone.
const PRIVATE: Question = Question { model: "private", text: THINGS, route: Some("shout") };
/// Counted by the ledger, off the path of requests.
const BOOKS: &str = "drystone_plugin_completion_tokens_total";
const ENTRIES: &str = "drystone_plugin_requests_total";
/// How long the ledger may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a question that meets all three, and prints what each did.
/// `asked` were asked before.
pub fn show(server: SocketAddr, asked: usize) -> Result<(), Failure> {
    let answer = ask::ask(server, PRIVATE, |_| {})?;
    println!("\nthe same of the model \"private\", with the header x-adapter-route: shout");
    println!("  adapter-router  answers with the adapter `shout`");
    println!("  redactor        {}", answer.text);
    println!("  usage-ledger    tokens by adapter: {}", books(server, asked + 1)?.join(", "));
    Ok(())
}

/// What the ledger counted, once it has an entry for every request.
fn books(server: SocketAddr, requests: usize) -> Result<Vec<String>, Failure> {
    let begun = Instant::now();
    loop {
        let metrics = ask::metrics(server)?;
        let lines = |name| metrics.lines().filter(move |line| line.starts_with(name));
        let numbers =
            lines(ENTRIES).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        if numbers.sum::<f64>() >= requests as f64 || begun.elapsed() > PATIENCE {
            return Ok(lines(BOOKS).filter_map(entry).collect());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `adapter tokens` of a line of `/metrics`.
fn entry(line: &str) -> Option<String> {
    let adapter = line.split_once("adapter=\"")?.1.split_once('"')?.0;
    Some(format!("{adapter} {}", line.rsplit_once(' ')?.1))
}
