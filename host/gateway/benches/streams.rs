//! Many concurrent streams over the loopback against ranks that answer at once: what HTTP, SSE and
//! the engine cost together, and whether any stream breaks.
//!
//! `cargo bench -p gateway --bench streams`. Clients share the machine with the server.
#![allow(clippy::unwrap_used, reason = "a bench that fails may panic")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

#[path = "../src/tests/script.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod script;
#[path = "../src/tests/server.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod server;

use script::Bounds;
use server::{Options, Server};

const TOKENS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    println!("streams  whole  seconds  requests/s  tokens/s  us/token  first ms p50  p99");
    for streams in [1, 64, 256, 1000] {
        Runtime::new().unwrap().block_on(run(streams));
    }
}

async fn run(streams: usize) {
    let bounds = Bounds { sequences_max: 1024, queue_max: 1024, ..Bounds::default() };
    let server = Server::with(Options { bounds: Some(bounds), ..Options::default() }).await;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        clients.spawn(timeout(PATIENCE, stream(server.address)));
    }
    let mut first: Vec<Duration> = Vec::new();
    while let Some(done) = clients.join_next().await {
        first.extend(done.unwrap().ok().flatten());
    }
    let seconds = began.elapsed().as_secs_f64();
    let tokens = (first.len() * TOKENS) as f64;
    first.sort_unstable();
    let at = |part: f64| first[((first.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!(
        "{streams:7}  {:5}  {seconds:7.2}  {:10.0}  {:8.0}  {:8.2}  {:12.1}  {:.1}",
        first.len(),
        first.len() as f64 / seconds,
        tokens / seconds,
        seconds / tokens * 1e6,
        at(0.5),
        at(0.99),
    );
    assert_eq!(first.len(), streams, "streams that broke");
}

/// The time to the first bytes of a stream that arrived whole.
async fn stream(address: SocketAddr) -> Option<Duration> {
    let body = json!({
        "prompt": "Hi", "stream": true, "ignore_eos": true, "max_tokens": TOKENS, "temperature": 0,
    });
    let body = body.to_string();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}", body.len());
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n{body}").as_bytes()).await.ok()?;
    let mut answer = vec![0; 1 << 16];
    let read = stream.read(&mut answer).await.ok()?;
    let first = began.elapsed();
    answer.truncate(read);
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let whole = answer.contains("\"finish_reason\":\"length\"") && answer.contains("data: [DONE]");
    whole.then_some(first)
}
