//! How the end of a choice is told: OpenAI's `finish_reason` and vLLM's `stop_reason`.

use contract::policy::completion::End;
use contract::request;
use serde_json::Value;

use crate::error::ApiError;

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// As policies are told.
    pub end: End,
    /// The stop text or token that the caller named; null for any other end.
    pub stop_reason: Value,
}

impl Finish {
    /// An end that no word of the caller brought about.
    pub const fn plain(end: End) -> Self {
        Self { end, stop_reason: Value::Null }
    }

    /// The end of a sequence.
    pub fn of(finish: request::Finish) -> Result<Self, ApiError> {
        let stop = |stop_reason| Self { end: End::Stop, stop_reason };
        match finish {
            request::Finish::StopText(text) => Ok(stop(text.into())),
            request::Finish::StopToken(token) => Ok(stop(token.into())),
            request::Finish::Length => Ok(Self::plain(End::Length)),
            request::Finish::Failed(message) => Err(ApiError::Failed(message)),
        }
    }

    /// The `finish_reason`.
    pub const fn reason(&self) -> &'static str {
        match self.end {
            End::Stop => "stop",
            End::Length => "length",
            End::Policy => "content_filter",
            End::Failed | End::Cancelled => "error",
        }
    }
}
