//! Tokens that a request used.

use contract::policy::completion;
use serde_json::{Value, json};

/// Token counts over all prompts and choices of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Tokens of all prompts; a prompt counts once, however many choices it has.
    pub prompt: usize,
    /// Prompt tokens found in the prefix cache by the first choice of each prompt.
    pub cached: usize,
    /// Tokens of all choices.
    pub completion: usize,
}

impl Usage {
    /// As policies are told.
    pub fn told(&self) -> completion::Usage {
        completion::Usage {
            prompt_tokens: self.prompt as u32,
            cached_tokens: self.cached as u32,
            completion_tokens: self.completion as u32,
        }
    }

    /// The `usage` object.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}
