//! The fields that decide which token is drawn, their ranges, and the model's own defaults.

use std::collections::BTreeMap;

use contract::sampling::Sampling;
use engine::text::Text;

use crate::error::ApiError;
use crate::request::fields::Fields;

/// Entries of `logit_bias` and of `stop_token_ids` at most.
const ENTRIES_MAX: usize = 1024;

/// What each number may be, whoever sets it.
pub mod range {
    /// `temperature`
    pub fn temperature(value: &f32) -> bool {
        (0.0..=2.0).contains(value)
    }

    /// `top_p`
    pub fn top_p(value: &f32) -> bool {
        *value > 0.0 && *value <= 1.0
    }

    /// `min_p`
    pub fn min_p(value: &f32) -> bool {
        (0.0..=1.0).contains(value)
    }

    /// `repetition_penalty`
    pub fn repetition_penalty(value: &f32) -> bool {
        *value > 0.0 && *value <= 10.0
    }

    /// `presence_penalty` and `frequency_penalty`
    pub fn penalty(value: &f32) -> bool {
        value.abs() <= 2.0
    }
}

/// Reads what acts on logits. Whatever a request leaves open is as `generation_config.json` has it.
pub fn read(fields: &Fields<'_>, text: &Text) -> Result<Sampling, ApiError> {
    let default = text.default_sampling();
    let neutral = Sampling::default();
    let penalty = |name| fields.get(name, "a number from -2 to 2", range::penalty);
    Ok(Sampling {
        temperature: fields
            .get("temperature", "a number from 0 to 2", range::temperature)?
            .or(default.temperature)
            .unwrap_or(neutral.temperature),
        top_k: top_k(fields)?.or(default.top_k).unwrap_or(neutral.top_k),
        top_p: fields
            .get("top_p", "a number above 0 and at most 1", range::top_p)?
            .or(default.top_p)
            .unwrap_or(neutral.top_p),
        min_p: fields
            .get("min_p", "a number from 0 to 1", range::min_p)?
            .or(default.min_p)
            .unwrap_or(neutral.min_p),
        repetition_penalty: fields
            .get(
                "repetition_penalty",
                "a number above 0 and at most 10",
                range::repetition_penalty,
            )?
            .or(default.repetition_penalty)
            .unwrap_or(neutral.repetition_penalty),
        presence_penalty: penalty("presence_penalty")?.unwrap_or(neutral.presence_penalty),
        frequency_penalty: penalty("frequency_penalty")?.unwrap_or(neutral.frequency_penalty),
        logit_bias: logit_bias(fields, text.vocab())?,
        stop_tokens: stop_tokens(fields, text)?,
        min_tokens: fields.get("min_tokens", "a whole number from 0", |_| true)?.unwrap_or(0),
    })
}

/// -1, as vLLM writes it, and 0 both keep all tokens.
fn top_k(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let wanted = "a whole number from 1, or 0 or -1 for all tokens";
    let fits = |&k: &i64| (-1..=i64::from(u32::MAX)).contains(&k);
    let top_k: Option<i64> = fields.get("top_k", wanted, fits)?;
    Ok(top_k.map(|k| u32::try_from(k).unwrap_or(0)))
}

/// `{"token id": number}`, as OpenAI has it: JSON knows no whole numbers as names.
fn logit_bias(fields: &Fields<'_>, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let wanted = format!(
        "an object of at most {ENTRIES_MAX} token ids below {vocab}, \
         each with a number from -100 to 100"
    );
    let id = |text: &str| text.parse::<u32>().ok().filter(|&id| (id as usize) < vocab);
    let fits = |bias: &BTreeMap<String, f32>| {
        let entry = |(text, bias): (&String, &f32)| id(text).is_some() && bias.abs() <= 100.0;
        bias.len() <= ENTRIES_MAX && bias.iter().all(entry)
    };
    let bias = fields.get("logit_bias", &wanted, fits)?.unwrap_or_default();
    Ok(bias.into_iter().filter_map(|(text, bias)| Some((id(&text)?, bias))).collect())
}

/// Tokens that the caller or, unless `ignore_eos` is set, the model ends with.
fn stop_tokens(fields: &Fields<'_>, text: &Text) -> Result<Vec<u32>, ApiError> {
    let vocab = text.vocab();
    let wanted = format!("a list of at most {ENTRIES_MAX} token ids below {vocab}");
    let fits =
        |ids: &Vec<u32>| ids.len() <= ENTRIES_MAX && ids.iter().all(|&id| (id as usize) < vocab);
    let mut stop = fields.get("stop_token_ids", &wanted, fits)?.unwrap_or_default();
    if !fields.flag("ignore_eos")? {
        stop.extend_from_slice(text.end_tokens());
    }
    Ok(stop)
}
