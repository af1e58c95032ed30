//! A request as the engine accepts it: tokens in, no HTTP and no chat messages.

use std::sync::Arc;

use crate::sampling::Sampling;

/// One sequence to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name for logs and answers.
    pub id: String,
    /// The adapter's served name; `None` is the base.
    pub adapter: Option<String>,
    /// Lower is served first, 0 is the usual; equals go by arrival.
    pub priority: i32,
    /// Prompt tokens; never empty.
    pub prompt: Arc<[u32]>,
    /// What acts on logits.
    pub sampling: Arc<Sampling>,
    /// Same seed, same text.
    pub seed: u64,
    /// Tokens to generate at most.
    pub max_tokens: u32,
    /// Texts that end the sequence.
    pub stop: Vec<String>,
    /// Leave the stop text in the output.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Logprobs of the output: how many of the likeliest tokens to name beside the drawn one.
    pub logprobs: Option<u32>,
    /// Logprobs of the prompt, likewise.
    pub prompt_logprobs: Option<u32>,
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// A stop text was produced.
    StopText(String),
    /// A stop token was drawn; `None` for the model's own end of sequence.
    StopToken(Option<u32>),
    /// `max_tokens` or the context length was reached.
    Length,
    /// The server could not go on; the message is for the caller.
    Failed(String),
}

/// A token with what was asked about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens by probability, from 1.
    pub place: u32,
    /// The likeliest tokens with their logprobs.
    pub top: Vec<(u32, f32)>,
}

/// News of a sequence since the last time its owner looked.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Text to append to what came before.
    pub text: String,
    /// Tokens behind it, in order; with neutral scores when no logprobs were asked for.
    pub tokens: Vec<Scored>,
    /// Logprobs of the prompt, once, when asked for: one entry a token after the first.
    pub prompt: Option<Vec<Scored>>,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u32,
    /// Set on the last one.
    pub finish: Option<Finish>,
}
