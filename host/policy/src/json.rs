//! Inputs and verdicts of hooks as JSON: what recordings hold and test cases are written in.
//!
//! Names are those of the WIT files: `"pass"`, `{ "respond": "text" }`, `"retry-after-s"`.

use std::collections::BTreeMap;

use config::settings::Allow;
use contract::policy::builtin;
use contract::policy::hook::Hook;
use contract::policy::replica::Replica;
use contract::policy::subject::{Headers, Message, Route, Subject, Tenant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types;
use crate::guest::Ambient;
use crate::tail::Tail;

/// Fields whose strings are words of the WIT files.
const WORDS: [&str; 2] = ["route", "finish"];

/// What a guest said. Of an answer to `on-chunk` the guest's own state is left out.
pub(crate) fn verdict(hook: Hook, answer: &impl Serialize) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(answer)?;
    let value = if hook == Hook::OnChunk { value[0].take() } else { value };
    Ok(match value {
        Value::String(case) => kebab(&case).into(),
        other => named(other, &kebab, &kebab),
    })
}

/// What a guest was asked and could look at meanwhile, under WIT's names.
pub(crate) fn input(asked: Value, seen: &Ambient, allow: &Allow) -> Value {
    let mut value = named(asked, &kebab, &kebab);
    let headers = seen.headers.0.iter().flat_map(|headers| headers.iter());
    let headers = headers.filter(|(name, _)| allow.headers.contains(name));
    let headers: BTreeMap<_, _> = headers.map(|(name, value)| (name, value)).collect();
    if !headers.is_empty() {
        value["headers"] = json!(headers);
    }
    if allow.messages && !seen.messages.is_empty() {
        let message = |one: &Message| json!({ "role": one.role, "content": one.content });
        value["messages"] = seen.messages.iter().map(message).collect();
    }
    value
}

/// Bytes as a text where they are one, and as numbers elsewhere.
pub(crate) fn bytes(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text))
}

/// What [`bytes`] wrote.
fn state(input: &Value) -> Result<Vec<u8>, String> {
    match input.get("state") {
        Some(Value::String(text)) => Ok(text.clone().into_bytes()),
        _ => part(input, "state"),
    }
}

/// `value` with all names of fields and cases, and the words in some of them, changed.
fn named(value: Value, key: &dyn Fn(&str) -> String, word: &dyn Fn(&str) -> String) -> Value {
    let field = |(name, value): (String, Value)| match value {
        Value::String(text) if WORDS.contains(&&*name) => (name, word(&text).into()),
        value => (key(&name), named(value, key, word)),
    };
    match value {
        Value::Object(fields) => Value::Object(fields.into_iter().map(field).collect()),
        Value::Array(items) => items.into_iter().map(|item| named(item, key, word)).collect(),
        other => other,
    }
}

/// `CamelCase` and `snake_case` as `kebab-case`.
fn kebab(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    for (i, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && i > 0 {
            out.push('-');
        }
        out.push(if letter == '_' { '-' } else { letter.to_ascii_lowercase() });
    }
    out
}

fn snake(name: &str) -> String {
    name.replace('-', "_")
}

fn capital(word: &str) -> String {
    word[..1.min(word.len())].to_ascii_uppercase() + word.get(1..).unwrap_or_default()
}

/// One part of an input, with what it leaves out as in an ordinary request.
pub(crate) fn part<T: DeserializeOwned>(input: &Value, name: &str) -> Result<T, String> {
    let mut value = usual(name);
    match (&mut value, input.get(name).cloned().unwrap_or_default()) {
        (Value::Object(fields), Value::Object(given)) => fields.extend(given),
        (_, Value::Null) => {}
        (value, given) => *value = given,
    }
    // Names of headers are no names of fields.
    let value = if name == "headers" { value } else { named(value, &snake, &capital) };
    serde_json::from_value(value).map_err(|error| format!("input.{name}: {error}"))
}

/// The name that `resolve-adapter` is asked about: the model's, unless the input has another.
pub(crate) fn name(input: &Value) -> Result<String, String> {
    match input.get("name") {
        Some(_) => part(input, "name"),
        None => subject(input).map(|subject| subject.model),
    }
}

fn usual(name: &str) -> Value {
    match name {
        "request" => json!({
            "id": "case", "tenant": "anonymous", "model": "base", "route": "chat",
            "prompt-tokens": 0, "max-tokens": null, "streamed": false,
        }),
        "caller" => json!({ "key": null, "route": "chat" }),
        "load" => json!({ "running": 0, "waiting": 0, "queue-max": 0, "kv-used": 0.0 }),
        "chunk" => json!({ "choice": 0, "pending": "", "released": 0, "last": false }),
        "demand" => json!({ "prompt-tokens": 0, "max-tokens": 0, "affinity": 0 }),
        "messages" | "state" => json!([]),
        "headers" => json!({}),
        "released" => json!(""),
        _ => Value::Null,
    }
}

/// What the guest may look at: `headers`, `messages`, and for `on-chunk` `released` and `state`.
pub(crate) fn ambient(input: &Value) -> Result<Ambient, String> {
    Ok(Ambient {
        headers: headers(input)?,
        messages: messages(input)?.into(),
        released: Tail::of(&part::<String>(input, "released")?),
        state: state(input)?,
        ..Ambient::default()
    })
}

/// The headers of an input.
pub(crate) fn headers(input: &Value) -> Result<Headers, String> {
    let headers: BTreeMap<String, String> = part(input, "headers")?;
    let lower = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    Ok(Headers(Some(lower.collect())))
}

fn messages(input: &Value) -> Result<Vec<Message>, String> {
    let messages: Vec<types::Message> = part(input, "messages")?;
    let message = |types::Message { role, content }| Message { role, content };
    Ok(messages.into_iter().map(message).collect())
}

/// The request of an input with what goes with it.
pub(crate) fn subject(input: &Value) -> Result<Subject, String> {
    let request: types::Request = part(input, "request")?;
    Ok(Subject {
        id: request.id.into(),
        tenant: Tenant(request.tenant),
        model: request.model,
        route: match request.route {
            types::Route::Chat => Route::Chat,
            types::Route::Completion => Route::Completion,
            types::Route::Other => Route::Other,
        },
        prompt_tokens: request.prompt_tokens,
        max_tokens: request.max_tokens,
        streamed: request.streamed,
        headers: headers(input)?,
        messages: messages(input)?.into(),
    })
}

/// What a server without plugins decides, in the same form. `None` for `authorize`, where that
/// depends on the keys of the deployment.
pub fn builtin(hook: Hook, input: &Value) -> Option<Value> {
    Some(match hook {
        Hook::Authorize => return None,
        Hook::OnRequest | Hook::OnChunk => json!("pass"),
        Hook::SelectAdapter => json!("named"),
        Hook::ResolveAdapter => json!("not-found"),
        Hook::Admit => json!({ "admit": { "priority": 0, "deadline-ms": null } }),
        Hook::ScoreReplicas => {
            let replicas: Vec<Replica> = part(input, "replicas").ok()?;
            replicas.iter().map(builtin::score).collect()
        }
        Hook::OnResponse => json!([]),
        Hook::OnComplete => Value::Null,
    })
}

/// Puts a text in the place of every digest that a redacted recording has, so that it can be asked
/// again. Equal texts are equal still; what they said is gone.
pub fn unredacted(value: Value) -> Value {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Digest {
        #[serde(rename = "sha256-8")]
        hex: String,
        #[serde(rename = "chars")]
        _chars: u64,
    }
    if let Ok(digest) = Digest::deserialize(&value) {
        return Value::String(format!("sha256-8:{}", digest.hex));
    }
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (key, unredacted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(unredacted).collect()),
        other => other,
    }
}

/// Whether `actual` has everything that `expected` has. Objects may have more; numbers may be off
/// by the rounding of 32-bit floats.
pub fn fits(expected: &Value, actual: &Value) -> bool {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            expected.iter().all(|(key, value)| fits(value, actual.get(key).unwrap_or(&Value::Null)))
        }
        (Value::Array(expected), Value::Array(actual)) => {
            expected.len() == actual.len() && expected.iter().zip(actual).all(|(a, b)| fits(a, b))
        }
        (Value::Number(expected), Value::Number(actual)) => {
            let (a, b) = (expected.as_f64().unwrap_or(0.0), actual.as_f64().unwrap_or(0.0));
            expected == actual || (a - b).abs() <= f64::from(f32::EPSILON) * a.abs().max(b.abs())
        }
        _ => expected == actual,
    }
}

/// Whether two verdicts come to the same. Scores do if the same replica wins.
pub fn agree(hook: Hook, a: &Value, b: &Value) -> bool {
    match (hook, winner(a), winner(b)) {
        (Hook::ScoreReplicas, Some(a), Some(b)) => a == b,
        _ => fits(a, b) && fits(b, a),
    }
}

fn winner(scores: &Value) -> Option<usize> {
    let scores: Vec<f64> = Vec::deserialize(scores).ok()?;
    (0..scores.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::redacted;

    #[test]
    fn verdicts_have_the_names_of_wit() {
        let of = |value: Value| verdict(Hook::OnRequest, &value).unwrap();
        assert_eq!(of(json!("NotFound")), "not-found");
        let edit = json!({ "Edit": [{ "SetContent": [0, "As Is"] }, { "Model": "Base" }] });
        let named = json!({ "edit": [{ "set-content": [0, "As Is"] }, { "model": "Base" }] });
        assert_eq!(of(edit), named);
        let denial = json!({ "Refuse": { "retry_after_s": 1 } });
        assert_eq!(of(denial), json!({ "refuse": { "retry-after-s": 1 } }));
        assert_eq!(verdict(Hook::OnChunk, &json!(["Hold", [1, 2]])).unwrap(), "hold");
    }

    #[test]
    fn what_was_recorded_can_be_read() {
        let asked = json!({ "request": {
            "id": "1", "tenant": "Acme", "model": "m", "route": "Completion", "prompt_tokens": 3,
            "max_tokens": null, "streamed": true,
        } });
        let recorded = input(asked, &Ambient::default(), &Allow::default());
        assert_eq!(recorded["request"]["prompt-tokens"], 3);
        assert_eq!(recorded["request"]["route"], "completion");
        let subject = subject(&recorded).unwrap();
        assert_eq!((subject.route, &*subject.tenant.0), (Route::Completion, "Acme"));
    }

    #[test]
    fn what_a_guest_could_look_at_is_recorded_and_nothing_else() {
        let headers = [("x-team", "ops"), ("x_odd", "1"), ("x-other", "2")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let message = Message { role: "user".to_owned(), content: "hello".to_owned() };
        let seen = Ambient {
            headers: Headers(Some(headers.into_iter().collect())),
            messages: [message].into(),
            ..Ambient::default()
        };
        let names = vec!["x-team".to_owned(), "x_odd".to_owned()];
        let allow = Allow { headers: names, messages: true, ..Allow::default() };
        let recorded = input(json!({}), &seen, &allow);
        assert_eq!(recorded["headers"], json!({ "x-team": "ops", "x_odd": "1" }));
        assert_eq!(recorded["messages"][0]["content"], "hello");
        assert_eq!(input(json!({}), &seen, &Allow::default()), json!({}));
        let again = ambient(&recorded).unwrap();
        assert_eq!((again.headers.get("x_odd"), again.messages.len()), (Some("1"), 1));
    }

    #[test]
    fn state_is_a_text_or_bytes() {
        for kept in [&b"a\"b"[..], &[0xFF, 0]] {
            let input = json!({ "state": bytes(kept) });
            assert_eq!(ambient(&input).unwrap().state, kept);
        }
    }

    #[test]
    fn an_expectation_names_only_what_matters() {
        let actual = json!({ "refuse": { "status": 403, "code": "no", "message": "No." } });
        assert!(fits(&json!({ "refuse": { "status": 403 } }), &actual));
        assert!(!fits(&json!({ "refuse": { "status": 404 } }), &actual));
        assert!(!fits(&json!("pass"), &actual));
        assert!(fits(&json!([0.1, 3]), &json!([f64::from(0.1f32), 3.0])));
        assert!(!fits(&json!([0.1]), &json!([0.1, 0.2])));
    }

    #[test]
    fn scores_agree_when_the_same_replica_wins() {
        let agree = |a: Value, b: Value| super::agree(Hook::ScoreReplicas, &a, &b);
        assert!(agree(json!([1, 2, 3]), json!([-5, 0, 0])));
        assert!(!agree(json!([1, 2, 3]), json!([3, 2, 1])));
        assert!(!super::agree(Hook::OnRequest, &json!({ "respond": "a" }), &json!("pass")));
    }

    #[test]
    fn a_redacted_input_can_be_asked_again() {
        let input = json!({
            "request": { "model": "sql" }, "messages": [{ "role": "user", "content": "hello" }],
            "headers": { "x-team": "ops" },
        });
        let again = unredacted(redacted(&input));
        let subject = subject(&again).unwrap();
        assert_eq!(subject.model, "sql");
        assert_eq!(subject.messages[0].content, "sha256-8:2cf24dba5fb0a30e");
    }

    #[test]
    fn what_an_input_leaves_out_is_as_usual_and_what_is_wrong_is_named() {
        let subject = subject(&json!({ "request": { "tenant": "acme" } })).unwrap();
        assert_eq!((&*subject.tenant.0, &*subject.model), ("acme", "base"));
        let wrong = json!({ "request": { "route": "mail" } });
        assert!(part::<types::Request>(&wrong, "request").unwrap_err().contains("input.request"));
    }

    #[test]
    fn the_server_itself_prefers_the_idle_replica() {
        let replica = |running: u32| {
            json!({ "running": running, "waiting": 0, "kv-used": 0.0, "adapter-resident": true,
                "prefix-hit": 0.0, "local": true })
        };
        let input = json!({ "replicas": [replica(2), replica(0)] });
        assert_eq!(winner(&builtin(Hook::ScoreReplicas, &input).unwrap()), Some(1));
    }
}
