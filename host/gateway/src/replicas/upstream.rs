//! Another server as a replica: any that speaks OpenAI's completions and takes prompts in tokens.
//!
//! What a request means is settled here, as it is for an engine of this process: the template is
//! rendered, policies have made their edits, and every choice goes out as tokens and sampling
//! settings with a seed of its own. So the upstream has to serve the same base. Requests that show
//! tokens (`logprobs`, `return_token_ids`) stay local: servers tell those in too many ways.

mod body;
mod client;
mod health;
mod relay;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use config::settings;
use contract::policy::replica::{Replica as Columns, ReplicaRow};
use contract::policy::verdict::Denied;
use contract::request::Request;
use engine::handle::SubmitError;
use engine::recent::Recent;
use engine::text::Text;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::ApiError;
use crate::replicas::Wanted;
use crate::replicas::upstream::client::{Reply, Target};
use crate::replicas::upstream::health::Seen;

pub use crate::replicas::upstream::relay::Relay;

/// How long an upstream that failed is left alone: doubled with every failure, up to the latter.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(30)];
/// Bytes that are read of an error.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// KV blocks of this many tokens that an upstream is taken to have: enough for some long prompts,
/// as nothing is known of it.
const BLOCKS: usize = 8192;
const BLOCK_TOKENS: usize = 16;

/// One `[[upstream]]`.
pub struct Upstream {
    name: String,
    target: Target,
    concurrency: usize,
    /// One permit an open choice.
    places: Arc<Semaphore>,
    /// Prompts that were sent there, whose blocks it likely has.
    recent: Recent,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the last check saw; `None` when it failed.
    seen: Option<Seen>,
    /// Requests that failed in a row.
    failures: u32,
    /// Left alone until then.
    rests_until: Option<Instant>,
}

/// Why an upstream did not begin an answer.
pub enum Refusal {
    /// Another replica may.
    Elsewhere(ApiError),
    /// The request itself is at fault.
    Final(ApiError),
}

impl Upstream {
    /// An upstream that takes requests once a check found it well.
    pub fn new(settings: &settings::Upstream) -> Self {
        Self {
            name: settings.name.clone(),
            target: Target::new(&settings.url, settings.key.as_deref()),
            concurrency: settings.concurrency,
            places: Arc::new(Semaphore::new(settings.concurrency.min(Semaphore::MAX_PERMITS))),
            recent: Recent::new(BLOCKS, BLOCK_TOKENS),
            state: Mutex::default(),
        }
    }

    /// Its name in the deployment.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks it from now on, for as long as somebody keeps it.
    pub fn watch(self: &Arc<Self>) {
        tokio::spawn(health::watch(Arc::downgrade(self)));
    }

    /// Whether it takes requests.
    pub fn is_healthy(&self) -> bool {
        let state = self.state();
        state.seen.is_some() && state.rests_until.is_none_or(|until| until <= Instant::now())
    }

    /// Whether it serves an adapter under `name`.
    pub fn serves(&self, name: &str) -> bool {
        self.state().seen.as_ref().is_some_and(|seen| seen.models.iter().any(|it| it == name))
    }

    /// The adapters that it serves, while it is well.
    pub fn adapters(&self) -> Vec<String> {
        self.state().seen.as_ref().map(|seen| seen.adapters.clone()).unwrap_or_default()
    }

    /// Its columns, if it could run what is wanted.
    pub fn columns(&self, wanted: Wanted<'_>) -> Option<Columns> {
        if !self.is_healthy() || self.places.available_permits() == 0 {
            return None;
        }
        let state = self.state();
        let seen = state.seen.as_ref()?;
        if wanted.adapter.is_some_and(|name| !seen.models.iter().any(|model| model == name)) {
            return None;
        }
        let own = (self.concurrency - self.places.available_permits()) as u32;
        Some(Columns {
            // What was sent since the last check counts too.
            running: seen.running.max(own.saturating_sub(seen.waiting)),
            waiting: seen.waiting,
            kv_used: seen.kv_used,
            adapter_resident: wanted.adapter.is_none_or(|name| seen.resident.contains(name)),
            prefix_hit: self.recent.hit(wanted.adapter.map(mark), wanted.prompt),
            local: false,
        })
    }

    /// As operators and policies see it.
    pub fn row(&self) -> ReplicaRow {
        let healthy = self.is_healthy();
        let state = self.state();
        let (running, waiting) =
            state.seen.as_ref().map_or((0, 0), |seen| (seen.running, seen.waiting));
        ReplicaRow { name: self.name.clone(), healthy, running, waiting }
    }

    /// Begins every choice, and waits for the first news of each: until then nothing was said, and
    /// another replica can take over.
    pub async fn begin(
        self: &Arc<Self>,
        requests: Vec<Request>,
        model_name: &str,
        text: &Text,
    ) -> Result<Vec<Relay>, Refusal> {
        let mut permits = self.places(requests.len())?;
        let base = self.base(model_name);
        let mut relays = Vec::with_capacity(requests.len());
        for request in &requests {
            let body = body::completion(request, &base, text.end_tokens());
            let permit = permits.split(1);
            relays.push(Relay::new(self.open(&body).await?, permit, text.end_tokens()));
        }
        for relay in &mut relays {
            if let Err(error) = relay.first().await {
                return Err(self.failed(error.to_string()));
            }
        }
        self.state().failures = 0;
        for request in &requests {
            self.recent.note(request.adapter.as_deref().map(mark), &request.prompt);
        }
        Ok(relays)
    }

    /// What the upstream calls the base.
    fn base(&self, model_name: &str) -> String {
        let state = self.state();
        let seen = state.seen.as_ref().and_then(|seen| seen.base(model_name));
        seen.unwrap_or(model_name).to_owned()
    }

    fn places(&self, count: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let places = Arc::clone(&self.places);
        let permits = places.try_acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX));
        permits.map_err(|_| {
            let (queued, queue_max) = (self.concurrency, self.concurrency);
            Refusal::Elsewhere(SubmitError::QueueFull { queued, queue_max }.into())
        })
    }

    /// Sends one choice; the head of a good answer.
    async fn open(&self, body: &Value) -> Result<Reply, Refusal> {
        let sent = self.target.post("/v1/completions", body).await;
        let mut reply = sent.map_err(|message| self.failed(message))?;
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let text = reply.text(ERROR_BYTES_MAX).await.unwrap_or_default();
        let message = message(&text).unwrap_or_else(|| format!("it answered {status}"));
        match status {
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => {
                let denied = Denied::new(status.as_u16(), "upstream_refused", message);
                Err(Refusal::Final(denied.into()))
            }
            // It is busy, and well.
            StatusCode::TOO_MANY_REQUESTS => {
                let denied = Denied::new(429, "queue_full", message);
                Err(Refusal::Elsewhere(denied.into()))
            }
            _ => Err(self.failed(message)),
        }
    }

    /// Takes note of a failure: it is left alone for a while.
    fn failed(&self, message: String) -> Refusal {
        let mut state = self.state();
        let wait = BACKOFF[0].saturating_mul(1 << state.failures.min(16)).min(BACKOFF[1]);
        state.failures = state.failures.saturating_add(1);
        state.rests_until = Some(Instant::now() + wait);
        tracing::warn!(upstream = self.name, message, "a request failed before its answer began");
        Refusal::Elsewhere(ApiError::Upstream(message))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands for an adapter among the marks of prompts.
fn mark(adapter: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    adapter.hash(&mut hasher);
    hasher.finish()
}

/// The message of an OpenAI error body.
fn message(text: &str) -> Option<String> {
    let body: Value = serde_json::from_str(text).ok()?;
    body["error"]["message"].as_str().map(str::to_owned)
}
