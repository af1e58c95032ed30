//! A chat question over HTTP, its answer read as it streams in.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::Failure;

/// One question to one model or adapter.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The `model` field: the base or an adapter.
    pub model: &'static str,
    /// The user's message.
    pub text: &'static str,
    /// The header `x-adapter-route`, which the demo's router looks at.
    pub route: Option<&'static str>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// Tokens behind it.
    pub tokens: u64,
}

/// Asks, and calls `seen` with the text so far whenever a piece arrives.
pub fn ask(
    server: SocketAddr,
    question: Question,
    mut seen: impl FnMut(&str),
) -> Result<Answer, Failure> {
    let body = json!({
        "model": question.model,
        "messages": [{"role": "user", "content": question.text}],
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let request = ureq::post(format!("http://{server}/v1/chat/completions"));
    let routed =
        question.route.into_iter().fold(request, |it, to| it.header("x-adapter-route", to));
    let response = routed
        .send_json(&body)
        .map_err(|error| Failure::Demo(format!("{}: {error}", question.model)))?;
    let mut answer = Answer::default();
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.map_err(|error| Failure::Demo(error.to_string()))?;
        let Some(event) = line.strip_prefix("data: ") else { continue };
        if event == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(event)
            .map_err(|error| Failure::Demo(format!("the server sent {event:?}: {error}")))?;
        take(&event, &mut answer)?;
        seen(&answer.text);
    }
    Ok(answer)
}

fn take(event: &Value, answer: &mut Answer) -> Result<(), Failure> {
    if let Some(message) = event["error"]["message"].as_str() {
        return Err(Failure::Demo(message.to_owned()));
    }
    if let Some(piece) = event["choices"][0]["delta"]["content"].as_str() {
        answer.text.push_str(piece);
    }
    if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
        answer.tokens = tokens;
    }
    Ok(())
}

/// The server's `/metrics`.
pub fn metrics(server: SocketAddr) -> Result<String, Failure> {
    let failed = |error: ureq::Error| Failure::Demo(format!("/metrics: {error}"));
    let mut response = ureq::get(format!("http://{server}/metrics")).call().map_err(failed)?;
    response.body_mut().read_to_string().map_err(failed)
}

/// A number that the server's `/metrics` has under `name`, whatever its labels.
pub fn metric(server: SocketAddr, name: &str) -> Result<f64, Failure> {
    let metrics = metrics(server)?;
    let line = metrics.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.ok_or_else(|| Failure::Demo(format!("/metrics has no {name}")))
}
