//! Answers as events, byte for byte where it matters.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Reply, post, post_request, send};
use super::script::{FATAL_SEED, SENTENCE, token};
use super::server::{BASE, Options, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn stream(server: &Server, path: &str, more: Value) -> Reply {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi",
        "temperature": 0, "stream": true,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut request = post_request(path, body.to_string());
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    send(server.address, request).await
}

/// The text of one choice.
fn said(events: &[Value], index: usize) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    let choices = choices.filter(|choice| choice["index"] == index);
    let texts = choices.map(|choice| match &choice["text"] {
        Value::Null => choice["delta"]["content"].as_str().unwrap_or_default(),
        text => text.as_str().unwrap(),
    });
    texts.collect()
}

fn finishes(events: &[Value], index: usize) -> Vec<&Value> {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    let choices = choices.filter(|choice| choice["index"] == index);
    choices.map(|choice| &choice["finish_reason"]).filter(|reason| !reason.is_null()).collect()
}

/// A step long enough for one token to be one event.
const STEP: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_chat_stream_byte_for_byte() {
    let server = Server::slow(STEP).await;
    let usage = json!({"include_usage": true});
    let reply = stream(&server, CHAT, json!({"max_tokens": 1, "stream_options": usage})).await;
    assert_eq!(reply.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(reply.header("cache-control"), "no-cache");
    assert_eq!(reply.header("x-request-id"), "mine");
    let created = reply.events()[0]["created"].clone();
    let head = format!(
        "data: {{\"id\":\"chatcmpl-mine\",\"object\":\"chat.completion.chunk\",\
         \"created\":{created},\"model\":\"{BASE}\",\"choices\":["
    );
    let expected = [
        &head,
        r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"#,
        r#""finish_reason":null}],"usage":null}"#,
        "\n\n",
        &head,
        r#"{"index":0,"delta":{"content":"T"},"logprobs":null,"finish_reason":"length","#,
        r#""stop_reason":null}],"usage":null}"#,
        "\n\n",
        &head,
        r#"],"usage":{"prompt_tokens":6,"completion_tokens":1,"total_tokens":7,"#,
        r#""prompt_tokens_details":{"cached_tokens":0}}}"#,
        "\n\ndata: [DONE]\n\n",
    ];
    assert_eq!(reply.text, expected.concat());
}

#[tokio::test]
async fn a_text_stream_byte_for_byte() {
    let server = Server::slow(STEP).await;
    let reply = stream(&server, TEXT, json!({"max_tokens": 1})).await;
    let created = reply.events()[0]["created"].clone();
    let expected = format!(
        "data: {{\"id\":\"cmpl-mine\",\"object\":\"text_completion\",\"created\":{created},\
         \"model\":\"{BASE}\",\"choices\":[{{\"index\":0,\"text\":\"T\",\"logprobs\":null,\
         \"finish_reason\":\"length\",\"stop_reason\":null}}]}}\n\ndata: [DONE]\n\n"
    );
    assert_eq!(reply.text, expected);
}

#[tokio::test]
async fn the_pieces_of_every_choice_make_its_text() {
    let server = Server::start().await;
    let fields = json!({"n": 2, "seed": 4, "temperature": 1, "max_tokens": 39});
    for path in [CHAT, TEXT] {
        let events = stream(&server, path, fields.clone()).await.events();
        for index in 0..2 {
            let start = 4 + index;
            let expected = format!("{SENTENCE}{SENTENCE}")[start..start + 39].to_owned();
            assert_eq!(said(&events, index), expected);
            assert_eq!(finishes(&events, index), ["length"]);
        }
    }
}

#[tokio::test]
async fn every_chat_choice_opens_with_its_role_once() {
    let server = Server::start().await;
    let events = stream(&server, CHAT, json!({"n": 3})).await.events();
    let roles = events.iter().map(|event| &event["choices"][0]);
    let roles = roles.filter(|choice| choice["delta"]["role"] == "assistant");
    let mut indices: Vec<_> = roles.map(|choice| choice["index"].as_u64().unwrap()).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2]);
}

#[tokio::test]
async fn a_stop_text_is_held_back_until_it_is_sure() {
    let server = Server::slow(Duration::from_millis(2)).await;
    let events = stream(&server, CHAT, json!({"stop": ["brown fog", "fox j"]})).await.events();
    assert_eq!(said(&events, 0), "The quick brown ");
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("fox j")));
}

#[tokio::test]
async fn usage_comes_with_every_event_when_asked_for() {
    let server = Server::slow(Duration::from_millis(2)).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let fields = json!({"max_tokens": 9, "stream_options": options});
    let events = stream(&server, TEXT, fields).await.events();
    let counts = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap());
    let counts: Vec<_> = counts.collect();
    assert!(counts.is_sorted() && counts.ends_with(&[9, 9]), "{counts:?}");
    assert!(events.iter().all(|event| event["usage"]["prompt_tokens"] == 3));
    assert_eq!(events.last().unwrap()["choices"], json!([]));
}

#[tokio::test]
async fn no_usage_is_sent_unless_asked_for() {
    let server = Server::start().await;
    let events = stream(&server, CHAT, json!({})).await.events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn logprobs_and_token_ids_go_with_their_text() {
    let server = Server::slow(Duration::from_millis(2)).await;
    let fields = json!({"logprobs": 1, "return_token_ids": true, "max_tokens": 5});
    let events = stream(&server, TEXT, fields).await.events();
    let all = |pick: fn(&Value) -> &Value| -> Vec<Value> {
        let lists = events.iter().filter_map(|event| pick(&event["choices"][0]).as_array());
        lists.flatten().cloned().collect()
    };
    let ids: Vec<u32> = "The q".chars().map(token).collect();
    assert_eq!(all(|choice| &choice["token_ids"]), *json!(ids).as_array().unwrap());
    assert_eq!(all(|choice| &choice["logprobs"]["tokens"]), ["T", "h", "e", " ", "q"]);
    assert_eq!(all(|choice| &choice["logprobs"]["text_offset"]), [0, 1, 2, 3, 4]);
    assert_eq!(all(|choice| &choice["prompt_token_ids"]), [1, token('H'), token('i')]);
}

#[tokio::test]
async fn an_echo_comes_first() {
    let server = Server::start().await;
    let events = stream(&server, TEXT, json!({"echo": true, "max_tokens": 3})).await.events();
    assert_eq!(events[0]["choices"][0]["text"], "Hi");
    assert_eq!(said(&events, 0), "HiThe");
}

#[tokio::test]
async fn a_failure_is_one_error_event_and_then_the_end() {
    let server = Server::slow(Duration::from_millis(2)).await;
    let reply = stream(&server, CHAT, json!({"seed": FATAL_SEED, "n": 2})).await;
    assert_eq!(reply.status, 200);
    let events = reply.events();
    let errors = events.iter().filter(|event| event.get("error").is_some());
    assert_eq!(errors.count(), 1);
    let error = &events.last().unwrap()["error"];
    assert_eq!(error["type"], "server_error");
    assert!(error["message"].as_str().unwrap().contains("it was in the script"), "{error}");
}

#[tokio::test]
async fn a_stream_that_takes_too_long_ends_with_an_error() {
    let bounds = super::script::Bounds { step: Duration::from_millis(20), ..Default::default() };
    let request_timeout = Duration::from_millis(200);
    let server =
        Server::with(Options { bounds: Some(bounds), request_timeout, ..Options::default() }).await;
    let events = stream(&server, CHAT, json!({})).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
    assert!(SENTENCE.starts_with(&said(&events, 0)));
    super::server::until("the sequence is gone", || server.engine().is_idle()).await;
}

#[tokio::test]
async fn a_refusal_before_the_first_event_has_its_own_status() {
    let server = Server::start().await;
    let reply = post(server.address, CHAT, &json!({"stream": true, "messages": []})).await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.header("content-type"), "application/json");
}
