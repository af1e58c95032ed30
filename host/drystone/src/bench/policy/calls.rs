//! Calls of hooks, one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::policy::Policy;
use contract::policy::replica::{Demand, Replica};
use contract::policy::subject::{Message, Route, Subject, Tenant};
use policy::host::Host;

use super::Row;
use crate::Failure;

/// Time between two calls in which the host makes the next instances ready: ten thousand requests
/// a second.
const PAUSE: Duration = Duration::from_micros(100);

pub(super) async fn score(host: &Host, calls: usize) -> Row {
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
    Row::new("score-replicas of 16, pooled", times)
}

pub(super) async fn request(
    what: &'static str,
    host: &Host,
    subject: &Subject,
    calls: usize,
) -> Row {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        host.on_request(subject).await;
        times.push(start.elapsed());
        pause(what).await;
    }
    Row::new(what, times)
}

/// Waits where instances are used once. A thread that sleeps would measure how it wakes.
async fn pause(what: &str) {
    let start = Instant::now();
    while what.ends_with("pre-warmed") && start.elapsed() < PAUSE {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn chunk(what: &'static str, host: &Host, calls: usize) -> Result<Row, Failure> {
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
        pause(what).await;
    }
    Ok(Row::new(what, times))
}

pub(super) fn subject(model: &str) -> Subject {
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
