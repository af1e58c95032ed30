//! How the end of a choice is told: OpenAI's `finish_reason` and vLLM's `stop_reason`.

use contract::request::Finish;
use serde_json::Value;

/// `(finish_reason, stop_reason)`; the latter is the stop text or token that the caller named.
pub fn reason(finish: &Finish) -> (&'static str, Value) {
    match finish {
        Finish::StopText(text) => ("stop", text.as_str().into()),
        Finish::StopToken(token) => ("stop", Value::from(*token)),
        Finish::Length => ("length", Value::Null),
        Finish::Failed(_) => ("error", Value::Null),
    }
}
