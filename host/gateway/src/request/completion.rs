//! The body of `POST /v1/completions`, and the prompts that `/tokenize` takes too.

use std::borrow::Cow;

use engine::text::Text;
use serde::Deserialize;

use crate::answer::form::{Form, Shape, stream};
use crate::error::ApiError;
use crate::request::chat::prompt_logprobs;
use crate::request::draft::{Draft, Input};
use crate::request::fields::Fields;
use crate::request::job::{CHOICES_MAX, Manner, Prompt, choices, logprobs};

/// Tokens to generate when a request does not say: OpenAI's default.
const MAX_TOKENS: u32 = 16;

/// The four forms of `prompt`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt, tokenized by the caller or not.
pub enum Given {
    /// To be tokenized.
    Text {
        /// The prompt.
        text: String,
        /// The tokenizer adds special tokens.
        special: bool,
    },
    /// Known to the tokenizer.
    Tokens(Vec<u32>),
}

impl Given {
    /// The prompt as a text.
    pub fn text(&self, text: &Text) -> Cow<'_, str> {
        match self {
            Self::Text { text, .. } => Cow::Borrowed(text),
            Self::Tokens(tokens) => Cow::Owned(text.decode(tokens, false)),
        }
    }

    /// Another text in its place. Where there were tokens, special ones are in the text already.
    pub fn replace(&mut self, text: String) {
        let special = matches!(self, Self::Text { special: true, .. });
        *self = Self::Text { text, special };
    }

    /// Tokenizes it; the answer begins with its text where `echo` says so.
    pub fn encode(self, text: &Text, echo: bool) -> Result<Prompt, ApiError> {
        let (tokens, shown) = match self {
            Self::Text { text: shown, special } => (encode(text, &shown, special)?, Some(shown)),
            Self::Tokens(tokens) => (tokens, None),
        };
        let echo = echo.then(|| shown.unwrap_or_else(|| text.decode(&tokens, false)));
        Ok(Prompt { tokens: tokens.into(), echo })
    }
}

impl Prompts {
    fn given(self, special: bool) -> Vec<Given> {
        let text = |text| Given::Text { text, special };
        match self {
            Self::Text(one) => vec![text(one)],
            Self::Texts(texts) => texts.into_iter().map(text).collect(),
            Self::Tokens(tokens) => vec![Given::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(Given::Tokens).collect(),
        }
    }
}

/// Reads a completion request.
pub fn read(fields: &Fields<'_>, text: &Text) -> Result<Draft, ApiError> {
    let manner = Manner::read(fields, text, Some(MAX_TOKENS))?;
    let stream = stream(fields)?;
    let logprobs = logprobs(fields, "logprobs")?;
    let echo = fields.flag("echo")?;
    let named = prompt_logprobs(fields, stream.is_some())?;
    let form = Form {
        shape: Shape::Text,
        stream,
        token_ids: fields.flag("return_token_ids")?,
        logprobs: logprobs.is_some(),
        prompt_logprobs: named.is_some(),
    };
    let prompts = prompts(fields, text.vocab())?;
    let n = choices(fields, prompts.len())?;
    // An echoed prompt is part of the output, so it has logprobs when the output has.
    let prompt_logprobs = named.max(logprobs.filter(|_| echo));
    if echo && logprobs.is_some() && form.stream.is_some() {
        let wanted = "false when `stream` is true and `logprobs` is set";
        return Err(ApiError::invalid("echo", "true", wanted));
    }
    Ok(Draft { input: Input::Text { prompts, echo }, n, manner, logprobs, prompt_logprobs, form })
}

fn prompts(fields: &Fields<'_>, vocab: usize) -> Result<Vec<Given>, ApiError> {
    let wanted = format!(
        "a text, a list of token ids, or a list of 1 to {CHOICES_MAX} texts or lists of token ids"
    );
    let special = fields.switch("add_special_tokens")?.unwrap_or(true);
    let prompts: Option<Prompts> = fields.get("prompt", &wanted, |_| true)?;
    let prompts = prompts.map_or_else(Vec::new, |prompts| prompts.given(special));
    match prompts.len() {
        1..=CHOICES_MAX => {}
        0 => return Err(ApiError::invalid("prompt", "empty or absent", &wanted)),
        many => return Err(ApiError::invalid("prompt", format!("a list of {many}"), &wanted)),
    }
    for given in &prompts {
        if let Given::Tokens(tokens) = given {
            check_known("prompt", tokens, vocab)?;
        }
    }
    Ok(prompts)
}

/// Tokens of a text prompt.
pub fn encode(text: &Text, prompt: &str, add_special: bool) -> Result<Vec<u32>, ApiError> {
    let invalid = |error: engine::text::TextError| ApiError::Invalid {
        param: "prompt",
        message: error.to_string(),
    };
    text.encode(prompt, add_special).map_err(invalid)
}

/// Refuses tokens that the tokenizer does not have.
pub fn check_known(param: &'static str, tokens: &[u32], vocab: usize) -> Result<(), ApiError> {
    let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) else { return Ok(()) };
    let wanted = format!("made of token ids below {vocab}");
    Err(ApiError::invalid(param, format!("one with the token {token}"), &wanted))
}
