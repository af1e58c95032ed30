//! Policies: what each hook does to a request and to its answer.

use std::sync::Arc;
use std::time::Duration;

use contract::policy::completion::{End, Usage};
use contract::policy::subject::Route;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Reply, post, post_bytes, post_request, send};
use super::script::{Bounds, SENTENCE, token};
use super::scripted::Scripted;
use super::server::{Options, Server, until};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

async fn start(bounds: Bounds) -> (Server, Arc<Scripted>) {
    let policy = Arc::new(Scripted::default());
    let (bounds, given) = (Some(bounds), policy.clone());
    let options = Options { bounds, policy: Some(given), ..Options::default() };
    (Server::with(options).await, policy)
}

async fn quick() -> (Server, Arc<Scripted>) {
    start(Bounds::default()).await
}

fn body(path: &str, model: &str) -> Value {
    match path {
        CHAT => json!({
            "model": model, "temperature": 0, "max_tokens": 44,
            "messages": [
                {"role": "user", "content": "Hi", "name": "me"},
                {"role": "user", "content": "you"},
            ],
        }),
        _ => json!({"model": model, "temperature": 0, "max_tokens": 44, "prompt": "Hi"}),
    }
}

fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The text and the `finish_reason` of the first choice, in whichever form it came.
fn said(reply: &Reply) -> (String, String) {
    let text = |choice: &Value| {
        let places = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
        places.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
    };
    let reason = |choice: &Value| choice["finish_reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!(reply.status, 200, "{}", reply.text);
    match reply.header("content-type").starts_with("text/event-stream") {
        false => {
            let choice = &reply.json()["choices"][0];
            (text(choice), reason(choice))
        }
        true => {
            let events = reply.events();
            let choices = || events.iter().map(|event| &event["choices"][0]);
            (choices().map(text).collect(), choices().map(reason).collect())
        }
    }
}

/// Both routes, streamed and whole.
async fn everywhere(model: &str) -> Vec<Reply> {
    let (server, _) = quick().await;
    let mut replies = Vec::new();
    for path in [CHAT, TEXT] {
        for stream in [false, true] {
            let body = with(body(path, model), json!({"stream": stream}));
            replies.push(post(server.address, path, &body).await);
        }
    }
    replies
}

#[tokio::test]
async fn a_caller_is_let_in_or_told_why_not() {
    let (server, policy) = quick().await;
    let mut request = post_request(TEXT, body(TEXT, "base").to_string());
    request.headers_mut().insert("authorization", "Bearer wrong".parse().unwrap());
    let (status, message, _, code) = send(server.address, request).await.error();
    assert_eq!((status, message.as_str(), code), (403, "go away", json!("no")));
    assert_eq!(policy.completions(), 0);
}

#[tokio::test]
async fn policies_see_the_headers_that_they_may_read_and_no_others() {
    let (server, policy) = quick().await;
    let mut request = post_request(TEXT, body(TEXT, "base").to_string());
    request.headers_mut().insert("x-team", "blue".parse().unwrap());
    request.headers_mut().insert("x-other", "secret".parse().unwrap());
    send(server.address, request).await.ok();
    let subject = policy.asked.lock().unwrap()[0].clone();
    assert_eq!(subject.headers.0.as_deref().unwrap(), [("x-team".to_owned(), "blue".to_owned())]);
    let about = (subject.tenant.0.as_str(), subject.route, subject.max_tokens, subject.streamed);
    assert_eq!(about, ("any", Route::Completion, Some(44), false));
}

#[tokio::test]
async fn the_limits_of_a_tenant_hold() {
    let (server, policy) =
        start(Bounds { step: Duration::from_millis(10), ..Bounds::default() }).await;
    let ask = async |more: Value| {
        let mut request = post_request(TEXT, with(body(TEXT, "base"), more).to_string());
        request.headers_mut().insert("x-team", "small".parse().unwrap());
        send(server.address, request).await
    };
    let answer = ask(json!({"min_tokens": 9})).await.ok();
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    let (first, second) = tokio::join!(ask(json!({})), ask(json!({})));
    let refused = if first.status == 200 { second } else { first };
    let (status, message, _, code) = refused.error();
    assert_eq!((status, code), (429, json!("tenant_concurrency")), "{message}");
    assert_eq!(refused.header("retry-after"), "1");
    ask(json!({})).await.ok();
    let statuses: Vec<_> = policy.completed.lock().unwrap().iter().map(|c| c.1.status).collect();
    assert_eq!(statuses.len(), 4);
    assert_eq!(statuses.iter().filter(|&&status| status == 429).count(), 1);
}

#[tokio::test]
async fn a_request_is_edited() {
    for reply in everywhere("edit").await {
        assert_eq!(said(&reply), ("The ".to_owned(), "stop".to_owned()));
    }
    let (server, policy) = quick().await;
    // One token a character: the template adds `<s>`, roles, line ends and the assistant's turn.
    for (model, path, tokens) in
        [("base", CHAT, 11), ("edit", CHAT, 14), ("insert", CHAT, 16), ("remove", CHAT, 7)]
    {
        let answer = post(server.address, path, &body(path, model)).await.ok();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{model}");
    }
    let asked = policy.asked.lock().unwrap();
    let messages = asked[0].messages.iter().map(|m| (m.role.as_str(), m.content.as_str()));
    assert_eq!(messages.collect::<Vec<_>>(), [("user", "Hi"), ("user", "you")]);
    let (subject, _) = policy.completed.lock().unwrap()[1].clone();
    assert_eq!((&*subject.messages[0].content, subject.max_tokens), ("Ho ho", Some(9)));
}

#[tokio::test]
async fn prompts_of_tokens_are_shown_as_text_and_edited_as_such() {
    let (server, policy) = quick().await;
    let ids = json!({"prompt": [[1, token('H'), token('i')]], "echo": true});
    for (model, tokens, text) in [("base", 3, "<s>Hi"), ("edit", 5, "Ho ho")] {
        let answer = post(server.address, TEXT, &with(body(TEXT, model), ids.clone())).await.ok();
        assert_eq!(answer["usage"]["prompt_tokens"], tokens, "{model}");
        assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(text), "{answer}");
    }
    assert_eq!(policy.asked.lock().unwrap()[1].messages[0].content, "<s>Hi");
}

#[tokio::test]
async fn messages_are_not_shown_to_policies_that_do_not_read_them() {
    let (server, policy) = quick().await;
    post(server.address, CHAT, &body(CHAT, "blind")).await.ok();
    assert!(policy.asked.lock().unwrap()[0].messages.is_empty());
}

#[tokio::test]
async fn an_edit_that_cannot_be_made_is_the_policys_fault() {
    let (server, _) = quick().await;
    for (path, model) in
        [(TEXT, "bad-index"), (CHAT, "bad-index"), (TEXT, "bad-number"), (TEXT, "insert")]
    {
        let reply = post(server.address, path, &body(path, model)).await;
        let (status, message, _, code) = reply.error();
        assert_eq!((status, code), (500, json!("policy_failed")), "{message}");
        assert_eq!(reply.json()["error"]["type"], "server_error");
    }
}

#[tokio::test]
async fn a_request_is_refused() {
    for reply in everywhere("refuse").await {
        let (status, message, _, code) = reply.error();
        assert_eq!((status, &*message, code), (422, "say it nicely", json!("not_so")));
    }
}

#[tokio::test]
async fn a_policy_answers_in_place_of_a_model() {
    for reply in everywhere("respond").await {
        assert_eq!(said(&reply), ("I was told to say this.".to_owned(), "stop".to_owned()));
    }
    let (server, policy) = quick().await;
    let body = with(body(TEXT, "respond"), json!({"prompt": ["a", "b"], "n": 2}));
    let answer = post(server.address, TEXT, &body).await.ok();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 4);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let (_, completion) = policy.completion();
    assert_eq!((completion.status, completion.end), (200, Some(End::Stop)));
    assert_eq!((completion.replica, completion.first_token), (None, None));
}

#[tokio::test]
async fn a_policy_chooses_the_adapter() {
    let (server, policy) = quick().await;
    for (model, text, named) in [
        ("alias", "THE QUIC", "alias"),
        ("other", "THE QUIC", "sql"),
        ("plain", "The quic", "plain"),
    ] {
        let body = with(body(TEXT, model), json!({"max_tokens": 8}));
        let answer = post(server.address, TEXT, &body).await.ok();
        assert_eq!(
            (&answer["choices"][0]["text"], &answer["model"]),
            (&json!(text), &json!(named))
        );
    }
    let adapters: Vec<_> =
        policy.completed.lock().unwrap().iter().map(|done| done.1.adapter.clone()).collect();
    assert_eq!(adapters, [Some("sql".to_owned()), Some("sql".to_owned()), None]);
    for (model, status, code) in [
        ("closed", 403, "not_yours"),
        ("unknown", 404, "model_not_found"),
        ("unsure", 403, "not_listed"),
    ] {
        let found = post(server.address, TEXT, &body(TEXT, model)).await.error();
        assert_eq!((found.0, found.3), (status, json!(code)), "{model}");
    }
}

#[tokio::test]
async fn a_policy_sheds_load_and_shortens_deadlines() {
    let (server, policy) =
        start(Bounds { step: Duration::from_millis(10), ..Bounds::default() }).await;
    let reply = post(server.address, TEXT, &body(TEXT, "shed")).await;
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, "7"));
    let (tokens, load) = policy.loads.lock().unwrap()[0];
    assert_eq!((tokens, load.queue_max, load.running), (3, 256, 0));
    let (status, message, _, code) = post(server.address, TEXT, &body(TEXT, "brief")).await.error();
    assert_eq!((status, code), (408, json!("timeout")));
    assert!(message.contains("0.05 s"), "{message}");
    let streamed = with(body(TEXT, "brief"), json!({"stream": true}));
    let events = post(server.address, TEXT, &streamed).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
    let ends: Vec<_> = policy.completed.lock().unwrap().iter().map(|done| done.1.end).collect();
    assert_eq!(ends.last(), Some(&Some(End::Failed)));
}

#[tokio::test]
async fn a_filter_changes_the_text() {
    for reply in everywhere("upper").await {
        assert_eq!(said(&reply), (SENTENCE.to_uppercase(), "length".to_owned()));
    }
}

#[tokio::test]
async fn a_filter_ends_a_choice() {
    for reply in everywhere("halt").await {
        let (text, reason) = said(&reply);
        assert!(text.ends_with("[cut]") && !text.contains("fox"), "{text}");
        assert_eq!(reason, "content_filter");
    }
    let (server, policy) =
        start(Bounds { step: Duration::from_millis(5), ..Bounds::default() }).await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = post(server.address, TEXT, &with(body(TEXT, "halt"), more)).await.events();
    let used = events.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((19..30).contains(&used), "{used}");
    let (_, completion) = policy.completion();
    assert_eq!((completion.status, completion.end), (200, Some(End::Policy)));
    assert_eq!(u64::from(completion.usage.completion_tokens), used);
    until("the sequence is cancelled", || server.engine().is_idle()).await;
}

#[tokio::test]
async fn a_filter_that_fails_ends_the_answer() {
    let replies = everywhere("broken").await;
    for reply in &replies {
        let error = match reply.status.as_u16() {
            200 => reply.events().pop().unwrap()["error"].clone(),
            status => {
                assert_eq!(status, 500);
                reply.json()["error"].clone()
            }
        };
        assert_eq!(
            (&error["code"], &error["message"]),
            (&json!("policy_failed"), &json!("no foxes"))
        );
    }
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 2);
}

#[tokio::test]
async fn tokens_are_not_shown_where_a_policy_filters_the_text() {
    let (server, _) = quick().await;
    for (path, field, value) in [
        (CHAT, "logprobs", json!(true)),
        (TEXT, "logprobs", json!(1)),
        (TEXT, "return_token_ids", json!(true)),
        (TEXT, "prompt_logprobs", json!(1)),
    ] {
        let asked = |model| with(body(path, model), json!({field: value}));
        let (status, message, param, code) =
            post(server.address, path, &asked("upper")).await.error();
        let expected = (400, json!(field), json!("unsupported_parameter"));
        assert_eq!((status, param, code), expected);
        assert!(message.contains("a policy filters"), "{message}");
        post(server.address, path, &asked("base")).await.ok();
    }
}

#[tokio::test]
async fn a_whole_answer_is_reviewed() {
    let (server, policy) = quick().await;
    let ask = async |more| post(server.address, TEXT, &with(body(TEXT, "review"), more)).await;
    let reply = ask(json!({"n": 2, "logprobs": 0})).await;
    assert_eq!(reply.header("x-reviewed"), "yes");
    let answer = reply.ok();
    let texts = [&answer["choices"][0]["text"], &answer["choices"][1]["text"]];
    assert_eq!(texts, [&json!("better"), &json!(SENTENCE)]);
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!([]));
    assert_eq!(answer["usage"]["completion_tokens"], 88);
    let response = policy.reviewed.lock().unwrap()[0].clone();
    assert_eq!(response.choices[1], (SENTENCE.to_owned(), End::Length));
    assert_eq!(response.usage.completion_tokens, 88);
    assert_eq!(ask(json!({"n": 3})).await.error().3, "policy_failed");
    let streamed = ask(json!({"stream": true})).await;
    assert_eq!(said(&streamed).0, SENTENCE);
    assert_eq!(policy.reviewed.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn what_a_request_came_to_is_told_once() {
    for stream in [false, true] {
        let (server, policy) = quick().await;
        let body = with(body(TEXT, "sql"), json!({"stream": stream}));
        post(server.address, TEXT, &body).await;
        until("it is told", || policy.completions() == 1).await;
        let (subject, completion) = policy.completion();
        assert_eq!((subject.model.as_str(), subject.prompt_tokens), ("sql", 3));
        assert_eq!((completion.status, completion.end), (200, Some(End::Length)));
        let ran = (completion.adapter.as_deref(), completion.replica.as_deref());
        assert_eq!(ran, (Some("sql"), Some("local-0")));
        let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 44 };
        assert_eq!(completion.usage, usage);
        assert!(completion.first_token.unwrap() <= completion.total);
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_told_too() {
    let (server, policy) = quick().await;
    for (sent, status) in [("{", 400), (r#"{"prompt": 3}"#, 400), (r#"{"model": "closed"}"#, 400)] {
        assert_eq!(send(server.address, post_request(TEXT, sent)).await.status, status);
    }
    let large = " ".repeat((1 << 20) + 1);
    assert_eq!(send(server.address, post_request(TEXT, large)).await.status, 413);
    let statuses: Vec<_> = policy.completed.lock().unwrap().iter().map(|c| c.1.status).collect();
    assert_eq!(statuses, [400, 400, 400, 413]);
}

#[tokio::test]
async fn a_client_that_leaves_is_told_of_once() {
    for (stream, status) in [(true, 200), (false, 499)] {
        for model in ["base", "upper"] {
            let bounds = Bounds { step: Duration::from_millis(10), ..Bounds::default() };
            let (server, policy) = start(bounds).await;
            let more = json!({"stream": stream, "max_tokens": 500, "ignore_eos": true, "n": 2});
            let mut client = TcpStream::connect(server.address).await.unwrap();
            let body = with(body(TEXT, model), more);
            client.write_all(&post_bytes(TEXT, &body)).await.unwrap();
            until("it runs", || server.engine().load().running == 2).await;
            if stream {
                let _ = client.read(&mut [0; 1000]).await.unwrap();
            }
            drop(client);
            until("it is told", || policy.completions() > 0).await;
            until("it is cancelled", || server.engine().is_idle()).await;
            let (_, completion) = policy.completion();
            assert_eq!((completion.status, completion.end), (status, Some(End::Cancelled)));
        }
    }
}
