//! The answers of the hooks that a request meets before it runs.

use std::borrow::Cow;
use std::time::Duration;

use crate::policy::subject::{Message, Tenant};

/// A refusal that the caller gets to see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    /// HTTP status: 400 to 499, or 500 to 503 where a policy failed or shed load.
    pub status: u16,
    /// Machine-readable code.
    pub code: Cow<'static, str>,
    /// For the caller.
    pub message: String,
    /// Seconds for the `Retry-After` header.
    pub retry_after_s: Option<u32>,
}

impl Denied {
    /// A refusal that names no time to try again.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code: Cow::Borrowed(code), message: message.into(), retry_after_s: None }
    }
}

/// Whom a request is for, and what they may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Who pays.
    pub tenant: Tenant,
    /// Tokens to generate for each choice at most.
    pub max_tokens: Option<u32>,
    /// Requests of this tenant at once.
    pub concurrency: Option<u32>,
}

/// What becomes of a request's body.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RequestVerdict {
    /// It stays as it is.
    #[default]
    Pass,
    /// These changes, in order. All have been checked against the subject's messages.
    Edit(Vec<Edit>),
    /// The caller is refused.
    Refuse(Denied),
    /// This is the answer; no model is asked.
    Respond(String),
}

/// One change to a request. Indices are those at the time of the edit.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Ask for another model or adapter.
    Model(String),
    /// Replace the content of a message, or of a prompt.
    SetContent(u32, String),
    /// Put a message before this index; chat only.
    InsertMessage(u32, Message),
    /// Take a message out; chat only. One must stay.
    RemoveMessage(u32),
    /// `temperature`
    Temperature(f32),
    /// `top_p`
    TopP(f32),
    /// `top_k`
    TopK(u32),
    /// `min_p`
    MinP(f32),
    /// `repetition_penalty`
    RepetitionPenalty(f32),
    /// `presence_penalty`
    PresencePenalty(f32),
    /// `frequency_penalty`
    FrequencyPenalty(f32),
    /// `max_tokens`
    MaxTokens(u32),
    /// `seed`
    Seed(i64),
    /// One more text that ends the answer.
    AddStop(String),
}

/// Where a request for a model name goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The base model.
    Base,
    /// The adapter served under this name.
    Adapter(String),
}

/// Where an adapter that nobody loaded lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A PEFT folder, relative to `adapters.resolve_root` and never above it.
    pub path: String,
    /// SHA-256 of its weight file in hex, when that must be checked.
    pub sha256: Option<String>,
}

/// How a request waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Lower goes first, 0 is the usual; -100 to 100.
    pub priority: i32,
    /// From now; the request is ended after it.
    pub deadline: Option<Duration>,
}
