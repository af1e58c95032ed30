//! What an answer shows and how it travels, as the request asked for it.

use crate::error::ApiError;
use crate::request::fields::Fields;

/// The form of one answer.
#[derive(Clone, Debug)]
pub struct Form {
    /// Which of OpenAI's two shapes.
    pub shape: Shape,
    /// As events while it is written, or whole at the end.
    pub stream: Option<Stream>,
    /// Show the token ids of prompt and output.
    pub token_ids: bool,
    /// Show logprobs of the output. Those of the prompt show when the engine was asked for them.
    pub logprobs: bool,
    /// Show logprobs of the prompt under vLLM's name.
    pub prompt_logprobs: bool,
}

/// The shape of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A message with a role.
    Chat,
    /// Plain text.
    Text,
}

/// What a stream reports about tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// A last event with the usage.
    pub usage: bool,
    /// The usage so far in every event.
    pub usage_always: bool,
}

/// Reads `stream` and `stream_options`.
pub fn stream(fields: &Fields<'_>) -> Result<Option<Stream>, ApiError> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Options {
        include_usage: Option<bool>,
        continuous_usage_stats: Option<bool>,
    }
    let wanted = "an object with `include_usage` and `continuous_usage_stats`, each true or false";
    let options: Option<Options> = fields.get("stream_options", wanted, |_| true)?;
    if !fields.flag("stream")? {
        return match options {
            Some(_) => {
                Err(ApiError::invalid("stream_options", "set", "absent unless `stream` is true"))
            }
            None => Ok(None),
        };
    }
    let options = options.unwrap_or_default();
    let usage = options.include_usage.unwrap_or(false);
    let usage_always = options.continuous_usage_stats.unwrap_or(false) && usage;
    Ok(Some(Stream { usage, usage_always }))
}
