//! What every piece of an answer repeats.

use crate::answer::form::Shape;
use crate::app::unix_seconds;

/// Names an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// `chatcmpl-` or `cmpl-` and the request's own name.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// As the caller asked for it.
    pub model: String,
}

impl Head {
    /// An answer that begins now.
    pub fn new(shape: Shape, request: &str, model: String) -> Self {
        let prefix = match shape {
            Shape::Chat => "chatcmpl",
            Shape::Text => "cmpl",
        };
        Self { id: format!("{prefix}-{request}"), created: unix_seconds(), model }
    }

    /// The `object` of a whole answer.
    pub const fn object(&self, shape: Shape) -> &'static str {
        match shape {
            Shape::Chat => "chat.completion",
            Shape::Text => "text_completion",
        }
    }

    /// The `object` of an event.
    pub const fn chunk_object(&self, shape: Shape) -> &'static str {
        match shape {
            Shape::Chat => "chat.completion.chunk",
            Shape::Text => "text_completion",
        }
    }
}
