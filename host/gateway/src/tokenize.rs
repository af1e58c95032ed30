//! `POST /tokenize` and `/detokenize`, as vLLM has them.

use engine::handle::Engine;
use engine::text::Text;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::request::fields::Fields;
use crate::request::{chat, completion};

/// Tokens of a prompt or of messages.
pub fn tokenize(fields: &Fields<'_>, engine: &Engine) -> Result<Value, ApiError> {
    let text = engine.text();
    let tokens = tokens(fields, text)?;
    let texts = fields
        .flag("return_token_strs")?
        .then(|| tokens.iter().map(|&token| text.token_text(token)).collect::<Vec<_>>());
    Ok(json!({
        "count": tokens.len(), "max_model_len": engine.context_max(),
        "tokens": tokens, "token_strs": texts,
    }))
}

fn tokens(fields: &Fields<'_>, text: &Text) -> Result<Vec<u32>, ApiError> {
    if fields.raw("messages").is_some() {
        let chat = chat::conversation(fields)?;
        return chat::encode(text, &chat, fields.flag("add_special_tokens")?);
    }
    let wanted = "a text, unless `messages` is set";
    let prompt: Option<String> = fields.get("prompt", wanted, |_| true)?;
    let prompt = prompt.ok_or_else(|| ApiError::invalid("prompt", "absent", wanted))?;
    completion::encode(text, &prompt, fields.switch("add_special_tokens")?.unwrap_or(true))
}

/// Text of tokens.
pub fn detokenize(fields: &Fields<'_>, engine: &Engine) -> Result<Value, ApiError> {
    let wanted = "a list of token ids";
    let tokens: Option<Vec<u32>> = fields.get("tokens", wanted, |_| true)?;
    let tokens = tokens.ok_or_else(|| ApiError::invalid("tokens", "absent", wanted))?;
    completion::check_known("tokens", &tokens, engine.text().vocab())?;
    Ok(json!({"prompt": engine.text().decode(&tokens, false)}))
}
