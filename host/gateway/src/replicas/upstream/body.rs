//! One choice as a request to another server.

use contract::request::Request;
use contract::sampling::Sampling;
use serde_json::{Map, Value, json};

/// The body of `POST /v1/completions`. Fields that not every server knows are left out where they
/// would change nothing.
pub fn completion(request: &Request, base: &str, end_tokens: &[u32]) -> Value {
    let sampling = &*request.sampling;
    let mut body = json!({
        "model": request.adapter.as_deref().unwrap_or(base),
        "prompt": &*request.prompt,
        "max_tokens": request.max_tokens,
        // Servers take signed numbers.
        "seed": request.seed as i64,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    });
    let ends = |token: &&u32| !end_tokens.contains(token);
    let stop_tokens: Vec<u32> = sampling.stop_tokens.iter().filter(ends).copied().collect();
    let ignore_eos = !end_tokens.iter().all(|token| sampling.stop_tokens.contains(token));
    let neutral = Sampling::default();
    let extras = [
        ("top_k", sampling.top_k != neutral.top_k, json!(sampling.top_k)),
        ("min_p", sampling.min_p != neutral.min_p, json!(sampling.min_p)),
        (
            "repetition_penalty",
            sampling.repetition_penalty != neutral.repetition_penalty,
            json!(sampling.repetition_penalty),
        ),
        ("min_tokens", sampling.min_tokens > 0, json!(sampling.min_tokens)),
        ("logit_bias", !sampling.logit_bias.is_empty(), bias(&sampling.logit_bias)),
        ("stop_token_ids", !stop_tokens.is_empty(), json!(stop_tokens)),
        ("ignore_eos", ignore_eos, json!(true)),
        ("stop", !request.stop.is_empty(), json!(request.stop)),
        ("include_stop_str_in_output", request.include_stop, json!(true)),
        ("skip_special_tokens", !request.skip_special_tokens, json!(false)),
    ];
    for (name, _, value) in extras.into_iter().filter(|(_, said, _)| *said) {
        body[name] = value;
    }
    body
}

fn bias(bias: &[(u32, f32)]) -> Value {
    let entries = bias.iter().map(|(token, bias)| (token.to_string(), json!(bias)));
    Value::Object(entries.collect::<Map<_, _>>())
}
