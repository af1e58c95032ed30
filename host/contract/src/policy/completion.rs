//! Answers as policies see them: whole, and after the fact.

use std::time::Duration;

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: u32,
    /// Of those, found in the prefix cache.
    pub cached_tokens: u32,
    /// Tokens of all choices.
    pub completion_tokens: u32,
}

/// Why a choice ended, as policies are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model was done, or a stop text was produced.
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
    /// A policy ended it.
    Policy,
    /// The server could not go on.
    Failed,
    /// The caller went away.
    Cancelled,
}

/// A whole answer before it is sent.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// The adapter that answered.
    pub adapter: Option<String>,
    /// Text and end of each choice.
    pub choices: Vec<(String, End)>,
    /// What it took.
    pub usage: Usage,
}

/// One change to a whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseEdit {
    /// Replace the text of a choice.
    SetText(u32, String),
    /// Add or replace a header. Name and value are legal and not one of the server's own.
    SetHeader(String, String),
}

/// What a request came to.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    /// HTTP status of the answer.
    pub status: u16,
    /// The adapter that answered.
    pub adapter: Option<String>,
    /// The replica that ran it.
    pub replica: Option<String>,
    /// How the first choice ended.
    pub end: Option<End>,
    /// What it took.
    pub usage: Usage,
    /// From arrival to the first token.
    pub first_token: Option<Duration>,
    /// From arrival to the end.
    pub total: Duration,
}
