//! What operators notice of plugins besides the time of calls: how soon a new file is live, what
//! a guest that spins does to others, and what is left of many calls and reloads in memory.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::policy::Policy;
use contract::policy::deploy::Plugins;
use policy::host::Host;

use super::calls::subject;
use super::server::pooled;
use super::{Memory, Row};
use crate::Failure;

/// Times that a file is changed to see how soon it is live.
const CHANGES: usize = 20;
/// Longer than any change takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls of which a server should keep nothing.
const CALLS: usize = 1_000_000;
/// Calls that come before anything is weighed.
const FIRST: usize = 10_000;
const RELOADS: usize = 1_000;

/// From the moment a new file is in its place until it is asked. Each file is compiled, for no
/// cache knows it.
pub(super) async fn live(file: &Path) -> Result<Row, Failure> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("plugin.wasm");
    let wasm = std::fs::read(file)?;
    std::fs::write(&place, &wasm)?;
    let host = pooled(&place).fresh().watched(None).start()?;
    let mut times = Vec::with_capacity(CHANGES);
    for _ in 0..CHANGES {
        let next = folder.path().join("next.wasm");
        let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        std::fs::write(&next, marked(&wasm, nanoseconds.as_nanos() as u64))?;
        let (start, number) = (Instant::now(), generation(&host));
        std::fs::rename(&next, &place)?;
        reloaded(&host, number, start)?;
        times.push(start.elapsed());
    }
    Ok(Row::new("live after its file changed", times))
}

/// Other requests on the same thread as one that spins until it is killed.
pub(super) async fn beside(file: &Path, calls: usize) -> Result<[Row; 2], Failure> {
    let host = pooled(file).start()?;
    let alone = others(&host, calls).await;
    let spinning = async {
        loop {
            host.on_request(&subject("spin")).await;
            tokio::task::yield_now().await;
        }
    };
    let beside = tokio::select! {
        times = others(&host, calls) => times,
        () = spinning => unreachable!("it spins for ever"),
    };
    Ok([Row::new("a request that does not spin", alone), Row::new("the same beside one", beside)])
}

/// How long requests take that come every few milliseconds, from when they are due.
async fn others(host: &Host, calls: usize) -> Vec<Duration> {
    let mut every = tokio::time::interval(Duration::from_millis(2));
    let mut times = Vec::with_capacity(calls);
    let subject = subject("base");
    for _ in 0..calls {
        let due = every.tick().await;
        host.on_request(&subject).await;
        times.push(due.elapsed());
    }
    times
}

/// Resident memory after many calls and reloads.
pub(super) async fn memory(file: &Path) -> Result<Vec<Memory>, Failure> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("plugin.wasm");
    let wasm = std::fs::read(file)?;
    std::fs::write(&place, &wasm)?;
    let cache = folder.path().join("cache");
    let host = pooled(&place).fresh().watched(Some(cache)).start()?;
    let mut rows = Vec::new();
    calls(&host, FIRST).await;
    reloads(&host, &place, &wasm, FIRST / 100).await?;
    rows.push(Memory::now("resident after 10,000 calls and 100 reloads")?);
    calls(&host, CALLS).await;
    rows.push(Memory::now("after a million calls more")?);
    reloads(&host, &place, &wasm, RELOADS).await?;
    rows.push(Memory::now("after a thousand reloads more")?);
    Ok(rows)
}

async fn calls(host: &Host, calls: usize) {
    let subject = subject("base");
    for _ in 0..calls {
        host.on_request(&subject).await;
        tokio::task::yield_now().await;
    }
}

async fn reloads(host: &Host, place: &Path, wasm: &[u8], reloads: usize) -> Result<(), Failure> {
    for reload in 0..reloads {
        let number = generation(host);
        let next = place.with_extension("next");
        // Two contents in turn: the cache has both.
        std::fs::write(&next, marked(wasm, reload as u64 % 2))?;
        std::fs::rename(&next, place)?;
        reloaded(host, number, Instant::now())?;
        calls(host, 10).await;
    }
    Ok(())
}

fn generation(host: &Host) -> u64 {
    host.list().first().map_or(0, |plugin| plugin.generation)
}

fn reloaded(host: &Host, before: u64, start: Instant) -> Result<(), Failure> {
    while generation(host) == before {
        if start.elapsed() > PATIENCE {
            return Err(Failure::Plugin("a changed file was not loaded".to_owned()));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// The component with a custom section at its end, so that it is another one that does the same.
fn marked(wasm: &[u8], mark: u64) -> Vec<u8> {
    // Section 0 of ten bytes, of which two are its name.
    const CUSTOM: [u8; 4] = [0, 10, 1, b'm'];
    [wasm, &CUSTOM, &mark.to_le_bytes()].concat()
}
