//! The body of `POST /v1/completions`, and the prompts that `/tokenize` takes too.

use engine::text::Text;
use serde::Deserialize;

use crate::answer::form::{Form, Shape, stream};
use crate::error::ApiError;
use crate::request::chat::prompt_logprobs;
use crate::request::fields::Fields;
use crate::request::job::{CHOICES_MAX, Job, Manner, Prompt, choices, logprobs};

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
enum Source {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompts {
    fn into_sources(self) -> Vec<Source> {
        match self {
            Self::Text(text) => vec![Source::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(Source::Text).collect(),
            Self::Tokens(tokens) => vec![Source::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(Source::Tokens).collect(),
        }
    }
}

/// Reads a completion request and tokenizes its prompts.
pub fn read(fields: &Fields<'_>, text: &Text) -> Result<Job, ApiError> {
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
    let sources = sources(fields)?;
    let n = choices(fields, sources.len())?;
    // An echoed prompt is part of the output, so it has logprobs when the output has.
    let prompt_logprobs = named.max(logprobs.filter(|_| echo));
    if echo && logprobs.is_some() && form.stream.is_some() {
        let wanted = "false when `stream` is true and `logprobs` is set";
        return Err(ApiError::invalid("echo", "true", wanted));
    }
    let special = fields.switch("add_special_tokens")?.unwrap_or(true);
    let prompts = sources.into_iter().map(|source| prompt(source, text, special, echo));
    Ok(Job {
        prompts: prompts.collect::<Result<_, _>>()?,
        n,
        manner,
        logprobs,
        prompt_logprobs,
        form,
    })
}

fn sources(fields: &Fields<'_>) -> Result<Vec<Source>, ApiError> {
    let wanted = format!(
        "a text, a list of token ids, or a list of 1 to {CHOICES_MAX} texts or lists of token ids"
    );
    let prompts: Option<Prompts> = fields.get("prompt", &wanted, |_| true)?;
    let sources = prompts.map_or_else(Vec::new, Prompts::into_sources);
    match sources.len() {
        1..=CHOICES_MAX => Ok(sources),
        0 => Err(ApiError::invalid("prompt", "empty or absent", &wanted)),
        many => Err(ApiError::invalid("prompt", format!("a list of {many}"), &wanted)),
    }
}

fn prompt(source: Source, text: &Text, special: bool, echo: bool) -> Result<Prompt, ApiError> {
    let (tokens, shown) = match source {
        Source::Text(shown) => (encode(text, &shown, special)?, Some(shown)),
        Source::Tokens(tokens) => {
            check_known("prompt", &tokens, text.vocab())?;
            (tokens, None)
        }
    };
    let echo = echo.then(|| shown.unwrap_or_else(|| text.decode(&tokens, false)));
    Ok(Prompt { tokens: tokens.into(), echo })
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
