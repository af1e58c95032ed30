//! A host in the test's own thread, for `cargo test` without a server.
//!
//! Each test begins with an empty host, for test threads are new: no headers, no messages, no
//! adapters, and a clock that stands at 1970 until [`advance`] moves it. Everything is granted.
//!
//! ```
//! # use drystone_sdk::{mock, prelude::*};
//! # struct Quota;
//! # #[policy] impl Policy for Quota {
//! #     type Config = NoConfig;
//! #     fn new(_: NoConfig, _: &Setup) -> Result<Self, String> { Ok(Self) }
//! #     fn select_adapter(&self, _: &Request) -> Selection { Selection::Base }
//! # }
//! mock::header("x-tenant", "acme");
//! let policy: Quota = mock::start("{}").unwrap();
//! assert_eq!(policy.select_adapter(&Request::default()), Selection::Base);
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;

use crate::bindings::imports::drystone::policy::{adapters, replicas};
use crate::export;
use crate::host::log::Level;
use crate::policy::Policy;
use crate::types::{Message, Request};

pub(crate) mod functions;
mod kv;

/// What the host of one thread knows.
#[derive(Default)]
struct Host {
    clock: Duration,
    randoms: u64,
    headers: BTreeMap<String, String>,
    messages: Vec<Message>,
    adapters: Vec<adapters::Adapter>,
    replicas: Vec<replicas::Replica>,
    asked: Option<Request>,
    released: String,
    state: Vec<u8>,
    sets: Vec<Vec<Regex>>,
    kv: kv::Store,
    logs: Vec<(Level, String)>,
    counters: BTreeMap<(String, Labels), u64>,
}

type Labels = Vec<(String, String)>;

thread_local! {
    static HOST: RefCell<Host> = RefCell::default();
}

fn with<T>(act: impl FnOnce(&mut Host) -> T) -> T {
    HOST.with_borrow_mut(act)
}

/// Starts a policy as the server does, from its configuration in JSON.
pub fn start<P: Policy>(config: &str) -> Result<P, String> {
    export::start(config)
}

/// Moves the clock on.
pub fn advance(by: Duration) {
    with(|host| host.clock += by);
}

/// Gives the request a header.
pub fn header(name: &str, value: &str) {
    with(|host| host.headers.insert(name.into(), value.into()));
}

/// Gives the request its messages, as `(role, content)`.
pub fn messages(messages: &[(&str, &str)]) {
    let message = |(role, content): &(&str, &str)| Message {
        role: (*role).into(),
        content: (*content).into(),
    };
    with(|host| host.messages = messages.iter().map(message).collect());
}

/// Serves an adapter of this name.
pub fn adapter(name: &str, lora_rank: u32, resident: bool) {
    let adapter = adapters::Adapter { name: name.into(), lora_rank, resident };
    with(|host| host.adapters.push(adapter));
}

/// Adds a replica.
pub fn replica(replica: replicas::Replica) {
    with(|host| host.replicas.push(replica));
}

/// Sets the request that is answered.
pub fn asked(request: Request) {
    with(|host| host.asked = Some(request));
}

/// Sets the text of the answer that has been released, and forgets the choice's state.
pub fn answer(released: &str) {
    with(|host| {
        host.released = released.into();
        host.state.clear();
    });
}

/// The lines that were logged.
pub fn logs() -> Vec<(Level, String)> {
    with(|host| host.logs.clone())
}

/// What a counter stands at.
pub fn counter(name: &str, labels: &[(&str, &str)]) -> u64 {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let key = (name.to_owned(), labels.iter().map(owned).collect());
    with(|host| host.counters.get(&key).copied().unwrap_or(0))
}
