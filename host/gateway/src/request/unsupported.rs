//! Fields that would change the answer, but that this server cannot serve: refused by name.
//!
//! Ignoring them would give an answer to another question. Each is accepted with the value that
//! means nothing, since clients send those too.

use serde_json::Value;

use crate::error::ApiError;
use crate::request::fields::Fields;

/// `(field, the values besides null that mean nothing, as JSON)`
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("allowed_token_ids", &[]),
    ("audio", &[]),
    ("bad_words", &["[]"]),
    ("best_of", &["1"]),
    ("cache_salt", &[]),
    ("documents", &["[]"]),
    ("function_call", &["\"none\""]),
    ("functions", &["[]"]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("kv_transfer_params", &[]),
    ("logits_processors", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("prompt_embeds", &[]),
    ("reasoning_effort", &[]),
    ("repetition_detection", &[]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("spaces_between_special_tokens", &["true"]),
    ("structured_outputs", &["{}"]),
    ("suffix", &["\"\""]),
    ("thinking_token_budget", &[]),
    ("tool_choice", &["\"none\""]),
    ("tools", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &["false"]),
    ("vllm_xargs", &["{}"]),
    ("web_search_options", &[]),
];

/// Refuses the first field that is set to something that matters.
pub fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    for (param, neutral) in UNSUPPORTED {
        let Some(raw) = fields.raw(param) else { continue };
        if !neutral.iter().any(|neutral| same(raw, neutral)) {
            return Err(ApiError::Unsupported { param });
        }
    }
    Ok(())
}

/// Whether two JSON texts mean the same.
fn same(a: &str, b: &str) -> bool {
    let parse = serde_json::from_str::<Value>;
    matches!((parse(a), parse(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Option<String> {
        let fields = Fields::parse(body.as_bytes()).expect("an object");
        refuse(&fields).err().map(|error| error.to_string())
    }

    #[test]
    fn every_field_is_refused_by_name_when_it_matters() {
        for (param, _) in UNSUPPORTED {
            let told = refused(&format!("{{\"{param}\": {{\"type\": \"x\"}}}}"));
            assert!(told.is_some_and(|told| told.contains(param)), "{param}");
        }
    }

    #[test]
    fn every_field_may_be_sent_when_it_means_nothing() {
        for (param, neutral) in UNSUPPORTED {
            for value in neutral.iter().chain(&["null"]) {
                assert_eq!(refused(&format!("{{\"{param}\": {value}}}")), None);
            }
        }
        assert_eq!(refused(r#"{"response_format": { "type" : "text" }, "user": "u"}"#), None);
    }
}
