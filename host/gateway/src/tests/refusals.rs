//! Wrong requests and what they are told.

use axum::body::Body;
use config::settings::ApiKey;
use hyper::Request;
use serde_json::{Value, json};

use super::client::{Reply, get, post, post_request, send};
use super::server::{BASE, Options, Server};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A good request of either route with one field changed.
fn with(path: &str, field: &str, value: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({"messages": [{"role": "user", "content": "Hi"}]}),
        _ => json!({"prompt": "Hi"}),
    };
    body[field] = value.clone();
    body
}

/// `(field, value, the message after "it must be")` on both routes.
fn shared() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("temperature", json!(-0.1), "a number from 0 to 2"),
        ("temperature", json!("hot"), "a number from 0 to 2"),
        ("top_p", json!(0), "a number above 0 and at most 1"),
        ("top_p", json!(1.5), "a number above 0 and at most 1"),
        ("top_k", json!(-2), "a whole number from 1, or 0 or -1 for all tokens"),
        ("min_p", json!(2), "a number from 0 to 1"),
        ("repetition_penalty", json!(0), "a number above 0 and at most 10"),
        ("presence_penalty", json!(3), "a number from -2 to 2"),
        ("frequency_penalty", json!([]), "a number from -2 to 2"),
        ("logit_bias", json!({"101": 1}), "an object of at most 1024 token ids below 101"),
        ("logit_bias", json!({"5": 101}), "each with a number from -100 to 100"),
        ("seed", json!(1.5), "a whole number of 64 bits"),
        ("stop", json!(""), "each of 1 to 1024 bytes"),
        ("stop", json!([1]), "a text or a list of at most 64 texts"),
        ("stop_token_ids", json!([101]), "a list of at most 1024 token ids below 101"),
        ("max_tokens", json!(-1), "a whole number from 0"),
        ("min_tokens", json!("2"), "a whole number from 0"),
        ("n", json!(0), "a whole number from 1 to 256"),
        ("n", json!(257), "a whole number from 1 to 256"),
        ("prompt_logprobs", json!(-1), "a whole number from 0 to 20"),
        ("stream", json!("yes"), "true or false"),
        ("stream_options", json!({"include_usage": true}), "absent unless `stream` is true"),
        ("ignore_eos", json!(1), "true or false"),
        ("echo", json!("x"), "true or false"),
        ("model", json!(3), "a name that GET /v1/models lists"),
    ]
}

fn of_chat() -> Vec<(&'static str, Value, &'static str)> {
    let message = "a list of at least one message, each an object with a `role`";
    vec![
        ("messages", json!([]), message),
        ("messages", json!([{"content": "Hi"}]), message),
        ("messages", json!("Hi"), message),
        ("messages", Value::Null, message),
        ("logprobs", json!(3), "true or false"),
        ("top_logprobs", json!(2), "with `logprobs` true"),
        ("chat_template", json!(3), "a chat template"),
        ("chat_template_kwargs", json!([]), "an object of variables for the chat template"),
    ]
}

fn of_text() -> Vec<(&'static str, Value, &'static str)> {
    let prompt = "a text, a list of token ids, or a list of 1 to 256 texts or lists of token ids";
    vec![
        ("prompt", Value::Null, prompt),
        ("prompt", json!([]), prompt),
        ("prompt", json!(["a", 3]), prompt),
        ("prompt", json!(vec!["a"; 257]), prompt),
        ("prompt", json!([5, 101]), "made of token ids below 101"),
        ("logprobs", json!(true), "a whole number from 0 to 20"),
        ("logprobs", json!(21), "a whole number from 0 to 20"),
    ]
}

#[tokio::test]
async fn a_wrong_field_is_named_with_what_would_do() {
    let server = Server::start().await;
    let on = |path, rows: Vec<_>| rows.into_iter().map(move |row| (path, row));
    let chat = on(CHAT, shared()).chain(on(CHAT, of_chat()));
    let text = on(TEXT, shared()).chain(on(TEXT, of_text()));
    for (path, (field, value, wanted)) in chat.chain(text) {
        let reply = post(server.address, path, &with(path, field, &value)).await;
        let (status, message, param, code) = reply.error();
        assert_eq!((status, &param, &code), (400, &json!(field), &Value::Null), "{message}");
        assert!(message.starts_with(&format!("`{field}` is ")), "{message}");
        assert!(message.contains(wanted), "{message}\n{wanted}");
    }
}

#[tokio::test]
async fn fields_that_contradict_each_other_are_refused() {
    let server = Server::start().await;
    let chat = |more: Value| with_all(CHAT, more);
    let text = |more: Value| with_all(TEXT, more);
    let refused = [
        (CHAT, chat(json!({"min_tokens": 5, "max_tokens": 4})), "min_tokens"),
        (TEXT, text(json!({"min_tokens": 17})), "min_tokens"),
        (TEXT, text(json!({"prompt": ["a", "b"], "n": 129})), "n"),
        (TEXT, text(json!({"prompt_logprobs": 1, "stream": true})), "prompt_logprobs"),
        (TEXT, text(json!({"echo": true, "logprobs": 1, "stream": true})), "echo"),
        (
            CHAT,
            chat(json!({"continue_final_message": true, "add_generation_prompt": true})),
            "continue_final_message",
        ),
    ];
    for (path, body, field) in refused {
        let (status, message, param, _) = post(server.address, path, &body).await.error();
        assert_eq!((status, param), (400, json!(field)), "{message}");
    }
}

fn with_all(path: &str, more: Value) -> Value {
    let mut body = with(path, "temperature", &json!(0));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_and_what_is_unknown_is_not() {
    let server = Server::start().await;
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for path in [CHAT, TEXT] {
        let reply = post(server.address, path, &with(path, "tools", &tools)).await;
        let (status, message, param, code) = reply.error();
        assert_eq!((status, param), (400, json!("tools")));
        assert_eq!(code, "unsupported_parameter");
        assert_eq!(message, "`tools` is not supported by this server: leave it out");
        post(server.address, path, &with(path, "flavour", &json!("sweet"))).await.ok();
    }
}

#[tokio::test]
async fn messages_that_are_no_text_are_refused() {
    let server = Server::start().await;
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    for (content, told) in [
        (image, "message 0 has a part of type \"image_url\""),
        (json!(3), "`content` of message 0 is no text"),
        (json!([3]), "message 0 has a part of type null"),
    ] {
        let messages = json!([{"role": "user", "content": content}]);
        let reply = post(server.address, CHAT, &with(CHAT, "messages", &messages)).await;
        let (status, message, param, _) = reply.error();
        assert_eq!((status, param), (400, json!("messages")));
        assert!(message.starts_with(told), "{message}");
    }
}

#[tokio::test]
async fn a_template_that_fails_or_spins_costs_its_own_request() {
    let server = Server::start().await;
    let spin = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    for template in ["{{ raise_exception('no') }}", "{% if %}", spin] {
        let body = with(CHAT, "chat_template", &json!(template));
        let (status, _, param, _) = post(server.address, CHAT, &body).await.error();
        assert_eq!((status, param), (400, json!("messages")), "{template}");
    }
}

#[tokio::test]
async fn a_model_that_is_not_there_is_404_on_every_route() {
    let server = Server::start().await;
    let bodies = [
        (CHAT, with(CHAT, "model", &json!("nope"))),
        (TEXT, with(TEXT, "model", &json!("nope"))),
        ("/tokenize", json!({"prompt": "Hi", "model": "nope"})),
        ("/detokenize", json!({"tokens": [5], "model": "nope"})),
    ];
    for (path, body) in bodies {
        let (status, message, param, code) = post(server.address, path, &body).await.error();
        assert_eq!((status, param, code), (404, json!("model"), json!("model_not_found")));
        assert_eq!(message, "the model `nope` does not exist; GET /v1/models lists those that do");
    }
    let (status, _, _, code) = get(server.address, "/v1/models/nope").await.error();
    assert_eq!((status, code), (404, json!("model_not_found")));
}

#[tokio::test]
async fn an_adapter_that_was_refused_says_why() {
    let server = Server::start().await;
    let body = with(TEXT, "model", &json!("rank-indivisible"));
    let (status, message, param, code) = post(server.address, TEXT, &body).await.error();
    assert_eq!((status, param, code), (400, json!("model"), json!("adapter_refused")));
    assert!(message.contains("rank-indivisible") && message.contains('4'), "{message}");
    assert!(!message.contains('/'), "a path of this machine: {message}");
}

#[tokio::test]
async fn prompts_must_have_tokens_and_fit_the_context() {
    let server = Server::start().await;
    let body = json!({"prompt": "", "add_special_tokens": false});
    let (status, _, param, _) = post(server.address, TEXT, &body).await.error();
    assert_eq!((status, param), (400, json!("prompt")));
    for body in [json!({"prompt": "x".repeat(600)}), json!({"prompt": "Hi", "max_tokens": 600})] {
        let (status, message, _, code) = post(server.address, TEXT, &body).await.error();
        assert_eq!((status, code), (400, json!("context_length_exceeded")));
        assert!(message.contains("600") || message.contains("601"), "{message}");
        assert!(message.contains("512"), "{message}");
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused() {
    let server = Server::start().await;
    let (status, message, ..) =
        sent(&server, post_request(CHAT, "{\"a\": 1,\n oops}")).await.error();
    assert_eq!(status, 400);
    assert!(message.contains("line 2 column 2"), "{message}");
    let form = Request::post(CHAT).header("host", "x").header("content-type", "text/plain");
    let (status, message, ..) = sent(&server, form.body(Body::from("{}")).unwrap()).await.error();
    assert_eq!(status, 415);
    assert!(message.contains("text/plain"), "{message}");
    let deep = "[".repeat(100_000);
    let body = format!("{{\"messages\": {deep}");
    assert_eq!(sent(&server, post_request(CHAT, body)).await.status, 400);
}

#[tokio::test]
async fn oversized_bodies_are_refused() {
    let options = Options { body_bytes_max: 1000, ..Options::default() };
    let server = Server::with(options).await;
    let reply = sent(&server, post_request(TEXT, " ".repeat(1001))).await;
    let (status, message, ..) = reply.error();
    assert_eq!((status, message.contains("1000 bytes")), (413, true), "{message}");
    let fits = format!("{{\"prompt\": \"Hi\"{}}}", " ".repeat(900));
    assert_eq!(sent(&server, post_request(TEXT, fits)).await.status, 200);
}

#[tokio::test]
async fn unknown_routes_are_json_too() {
    let server = Server::start().await;
    let (status, message, ..) = get(server.address, "/v2/chat").await.error();
    assert_eq!((status, message.contains("/v2/chat")), (404, true), "{message}");
    let (status, message, ..) = get(server.address, CHAT).await.error();
    assert_eq!((status, message.contains("GET")), (405, true), "{message}");
}

#[tokio::test]
async fn keys_guard_what_costs_and_nothing_else() {
    let key = ApiKey { tenant: "acme".to_owned(), key: "sk-right".to_owned() };
    let server = Server::with(Options { keys: vec![key], ..Options::default() }).await;
    for (key, expected) in
        [(None, 401), (Some("Bearer sk-wrong"), 401), (Some("bearer sk-right"), 200)]
    {
        let mut request = post_request(TEXT, with(TEXT, "model", &json!(BASE)).to_string());
        if let Some(key) = key {
            request.headers_mut().insert("authorization", key.parse().unwrap());
        }
        let reply = sent(&server, request).await;
        assert_eq!(reply.status, expected, "{key:?}");
        if expected == 401 {
            assert_eq!(reply.header("www-authenticate"), "Bearer");
            assert_eq!(reply.error().3, "invalid_api_key");
            assert!(!reply.text.contains("sk-"), "{}", reply.text);
        }
    }
    for path in ["/v1/models", "/v1/models/base"] {
        assert_eq!(get(server.address, path).await.status, 401, "{path}");
    }
    for path in ["/health", "/ready", "/metrics", "/openapi.json"] {
        assert_eq!(get(server.address, path).await.status, 200, "{path}");
    }
    let tokenize = post(server.address, "/tokenize", &json!({"prompt": "Hi"})).await;
    assert_eq!(tokenize.status, 401);
}

async fn sent(server: &Server, request: Request<Body>) -> Reply {
    send(server.address, request).await
}
