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
/// How long the ledger may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a question that meets all three, and prints what each did.
pub fn show(server: SocketAddr) -> Result<(), Failure> {
    let answer = ask::ask(server, PRIVATE, |_| {})?;
    println!("\nthe same of the model \"private\", with the header x-adapter-route: shout");
    println!("  adapter-router  answers with the adapter `shout`");
    println!("  redactor        {}", answer.text);
    println!("  usage-ledger    tokens by adapter: {}", books(server)?.join(", "));
    Ok(())
}

/// What the ledger counted, once it knows all adapters that were asked.
fn books(server: SocketAddr) -> Result<Vec<String>, Failure> {
    let begun = Instant::now();
    loop {
        let metrics = ask::metrics(server)?;
        let lines = metrics.lines().filter(|line| line.starts_with(BOOKS));
        let books: Vec<String> = lines.filter_map(entry).collect();
        if books.len() >= 4 || begun.elapsed() > PATIENCE {
            return Ok(books);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `adapter tokens` of a line of `/metrics`.
fn entry(line: &str) -> Option<String> {
    let adapter = line.split_once("adapter=\"")?.1.split_once('"')?.0;
    Some(format!("{adapter} {}", line.rsplit_once(' ')?.1))
}
