//! Logprobs in the three shapes that clients know: chat, completions, and vLLM's for prompts.

use contract::request::Scored;
use engine::text::Text;
use serde_json::{Map, Value, json};

/// JSON has no infinity; clients expect this for a token that could not be drawn.
const LOWEST: f32 = -9999.0;

/// Chat: one object a token.
pub fn chat(text: &Text, tokens: &[Scored]) -> Value {
    let content: Vec<Value> = tokens.iter().map(|scored| chat_token(text, scored)).collect();
    json!({"content": content, "refusal": null})
}

fn chat_token(text: &Text, scored: &Scored) -> Value {
    let mut entry = entry(text, scored.token, scored.logprob);
    let top =
        scored.top.iter().map(|&(token, logprob)| Value::from(self::entry(text, token, logprob)));
    entry.insert("top_logprobs".to_owned(), top.collect());
    entry.into()
}

fn entry(text: &Text, token: u32, logprob: f32) -> Map<String, Value> {
    let fields = [
        ("token", text.token_text(token).into()),
        ("logprob", finite(logprob)),
        ("bytes", text.token_bytes(token).into()),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// Completions: parallel lists. Offsets count characters and go on over the pieces of a stream.
#[derive(Debug, Default)]
pub struct Columns {
    offset: usize,
}

impl Columns {
    /// The next tokens of a choice; those without a score are the first of a prompt.
    pub fn next<'a>(
        &mut self,
        text: &Text,
        tokens: impl Iterator<Item = (u32, Option<&'a Scored>)>,
    ) -> Value {
        let (mut names, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for (token, scored) in tokens {
            let name = text.token_text(token);
            offsets.push(self.offset);
            self.offset += name.chars().count();
            names.push(name);
            logprobs.push(scored.map_or(Value::Null, |scored| finite(scored.logprob)));
            tops.push(scored.map_or(Value::Null, |scored| top(text, scored)));
        }
        json!({
            "tokens": names, "token_logprobs": logprobs,
            "top_logprobs": tops, "text_offset": offsets,
        })
    }
}

/// The likeliest tokens by their text, and the token itself if it is not one of them.
fn top(text: &Text, scored: &Scored) -> Value {
    let own = (scored.token, scored.logprob);
    let named = scored.top.iter().chain([&own]);
    named.map(|&(token, logprob)| (text.token_text(token), finite(logprob))).collect()
}

/// vLLM's `prompt_logprobs`: an object by token id for every token but the first.
pub fn prompt(text: &Text, scored: &[Scored]) -> Value {
    let tokens = scored.iter().map(|scored| {
        let own = (scored.place, scored.token, scored.logprob);
        let top = (1..).zip(&scored.top).map(|(place, &(token, logprob))| (place, token, logprob));
        Value::from_iter(top.chain([own]).map(|(place, token, logprob)| {
            let entry = json!({
                "logprob": finite(logprob), "rank": place, "decoded_token": text.token_text(token),
            });
            (token.to_string(), entry)
        }))
    });
    std::iter::once(Value::Null).chain(tokens).collect()
}

fn finite(logprob: f32) -> Value {
    f64::from(logprob.max(LOWEST)).into()
}
