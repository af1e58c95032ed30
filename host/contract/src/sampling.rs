//! How the next token is chosen from logits, as the device needs to know it.

/// Settings of one sequence that act on logits. Neutral values leave the logits alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens that reach this probability together; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens in the output; 0 is none.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from logits of tokens in the output; 0 is none.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, before everything else.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that end the sequence; they cannot be drawn while fewer than `min_tokens` were.
    pub stop_tokens: Vec<u32>,
    /// Tokens to draw before a stop token may be.
    pub min_tokens: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            stop_tokens: Vec::new(),
            min_tokens: 0,
        }
    }
}

impl Sampling {
    /// Whether drawing needs the tokens that came before.
    pub fn reads_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}
