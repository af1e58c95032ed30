//! Other servers as replicas: a Drystone, and one that dies at chosen moments.

use std::net::SocketAddr;
use std::time::Duration;

use config::settings::{ApiKey, Upstream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::{get, post};
use super::script::{Bounds, SENTENCE, goldens, token};
use super::server::{Options, Server, until};

const KEY: &str = "upstream-key";
/// The head of a streamed answer that lasts until the connection is closed.
const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

fn upstream(address: SocketAddr, concurrency: usize) -> Upstream {
    let (name, url) = ("far".to_owned(), format!("http://{address}"));
    Upstream { name, url, key: Some(KEY.to_owned()), concurrency }
}

/// A server in front of an upstream that was found well. Its own engine takes nothing, unless
/// `local`.
async fn front(upstream: Upstream, local: bool) -> Server {
    let upstreams = vec![upstream];
    let server = Server::with(Options { upstreams, ..Options::default() }).await;
    until("the upstream is well", || {
        gateway::surroundings::replicas(&server.app).iter().all(|row| row.healthy)
    })
    .await;
    if !local {
        server.engine().drain();
    }
    server
}

async fn drystone(bounds: Bounds) -> Server {
    let keys = vec![ApiKey { tenant: "front".to_owned(), key: KEY.to_owned() }];
    let root = Some(goldens());
    Server::with(Options { bounds: Some(bounds), keys, root, ..Options::default() }).await
}

/// A server that is well, and sends `answer` to whatever is to be completed.
async fn raw(answer: String) -> SocketAddr {
    raw_parts(vec![answer]).await
}

/// The same, with a pause between the parts of its answer.
async fn raw_parts(answer: Vec<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(reply(stream, answer.clone()));
        }
    });
    address
}

async fn reply(mut stream: TcpStream, answer: Vec<String>) {
    let mut asked = vec![0; 64 << 10];
    let read = stream.read(&mut asked).await.unwrap();
    let asked = String::from_utf8_lossy(&asked[..read]).into_owned();
    let parts = match asked.split(' ').nth(1) {
        Some("/v1/completions") => answer,
        Some("/v1/models") => {
            let list = json!({"data": [{"id": "its-base", "parent": null}]}).to_string();
            vec![format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{list}", list.len())]
        }
        _ => vec!["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()],
    };
    for part in parts {
        let _ = stream.write_all(part.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let _ = stream.shutdown().await;
}

fn event(text: &str, finish: Option<&str>) -> String {
    let choice = json!({"index": 0, "text": text, "finish_reason": finish});
    format!("data: {}\n\n", json!({"choices": [choice]}))
}

async fn complete(server: &Server, body: &Value) -> super::client::Reply {
    post(server.address, "/v1/completions", body).await
}

#[tokio::test]
async fn an_upstream_answers_as_the_engine_here_would() {
    let far = drystone(Bounds::default()).await;
    let near = Server::start().await;
    let server = front(upstream(far.address, 16), false).await;
    let chat = json!([{"role": "user", "content": "Hi"}]);
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "Hi", "max_tokens": 9, "temperature": 0})),
        ("/v1/completions", json!({"prompt": "Hi", "n": 3, "seed": 5, "stop": ["lazy"]})),
        ("/v1/completions", json!({"prompt": ["Hi", "Ho"], "echo": true, "seed": 2})),
        ("/v1/chat/completions", json!({"messages": chat, "temperature": 0})),
        ("/v1/chat/completions", json!({"model": "sql", "messages": chat, "temperature": 0})),
        ("/v1/completions", json!({"prompt": "Hi", "seed": 1, "stop_token_ids": [80]})),
    ] {
        let (ours, theirs) = (
            post(near.address, path, &body).await.ok(),
            post(server.address, path, &body).await.ok(),
        );
        assert_eq!(theirs["choices"], ours["choices"], "{body}");
        for count in ["prompt_tokens", "completion_tokens"] {
            assert_eq!(theirs["usage"][count], ours["usage"][count], "{body}");
        }
    }
    assert_eq!(far.engine().load().running, 0);
}

#[tokio::test]
async fn a_stream_passes_through_and_counts() {
    let far = drystone(Bounds::default()).await;
    let server = front(upstream(far.address, 16), false).await;
    let options = json!({"include_usage": true});
    let body = json!({"prompt": "Hi", "max_tokens": 60, "temperature": 0, "stream": true,
        "stream_options": options});
    let events = complete(&server, &body).await.events();
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, SENTENCE);
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], SENTENCE.len() + 1);
    let finishes: Vec<_> =
        events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(finishes, ["stop"]);
}

#[tokio::test]
async fn an_adapter_that_only_the_upstream_serves_goes_there() {
    let far = drystone(Bounds::default()).await;
    let source =
        contract::policy::verdict::Source { path: "llama/adapters/plain".to_owned(), sha256: None };
    far.app.load_adapter("far-only", source).await.unwrap();
    let server = front(upstream(far.address, 16), true).await;
    let body = json!({"model": "far-only", "prompt": "Hi", "max_tokens": 9, "temperature": 0});
    until("it is known", || server.app.replicas().is_ok_and(|replicas| replicas.knows("far-only")))
        .await;
    let text = SENTENCE[..9].to_ascii_uppercase();
    assert_eq!(complete(&server, &body).await.ok()["choices"][0]["text"], text);
    let body = json!({"model": "nobody", "prompt": "Hi"});
    assert_eq!(complete(&server, &body).await.status, 404);
    let models = get(server.address, "/v1/models").await.ok();
    let ids = models["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap());
    let known: Vec<_> = ids.filter(|id| ["sql", "far-only"].contains(id)).collect();
    assert_eq!(known, ["sql", "far-only"], "each once: {models}");
}

#[tokio::test]
async fn what_dies_before_it_began_is_asked_of_another() {
    for answer in [
        String::new(),
        STREAM.to_owned(),
        "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 429 Busy\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "nonsense\r\n\r\n".to_owned(),
        format!("{STREAM}data: nonsense\n\n"),
        format!("{STREAM}data: {{\"error\": {{\"message\": \"no\"}}}}\n\n"),
    ] {
        let server = front(upstream(raw(answer.clone()).await, 4), true).await;
        for model in ["base", "base"] {
            let body = json!({"model": model, "prompt": "Hi", "max_tokens": 9, "temperature": 0});
            let reply = complete(&server, &body).await;
            assert_eq!(reply.ok()["choices"][0]["text"], SENTENCE[..9], "{answer}");
        }
    }
}

#[tokio::test]
async fn without_another_its_failure_is_told_and_it_rests() {
    let broken = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
    let server = front(upstream(raw(broken.to_owned()).await, 4), false).await;
    let body = json!({"prompt": "Hi"});
    let (status, message, _, code) = complete(&server, &body).await.error();
    assert_eq!((status, code), (502, json!("upstream")), "{message}");
    let (status, _, _, code) = complete(&server, &body).await.error();
    assert_eq!((status, code), (503, json!("no_replica")));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(complete(&server, &body).await.error().0, 502, "it is tried again");
    let busy = "HTTP/1.1 429 Busy\r\ncontent-length: 0\r\n\r\n";
    let server = front(upstream(raw(busy.to_owned()).await, 4), false).await;
    assert_eq!(complete(&server, &body).await.error().0, 429);
    let refused = json!({"error": {"message": "too long"}}).to_string();
    let head = format!("HTTP/1.1 400 No\r\ncontent-length: {}\r\n\r\n", refused.len());
    let server = front(upstream(raw(head + &refused).await, 4), false).await;
    let (status, message, ..) = complete(&server, &body).await.error();
    assert_eq!((status, &*message), (400, "too long"));
}

#[tokio::test]
async fn what_dies_after_it_began_ends_with_an_error_and_done() {
    let begun = format!("{STREAM}{}", event("The", None));
    let long = "x".repeat(2 << 20);
    for rest in [
        String::new(),
        "data: {\"choices\": [{".to_owned(),
        "data: {\"error\": {\"message\": \"lost\"}}\n\ndata: [DONE]\n\n".to_owned(),
        "data: [DONE]\n\n".to_owned(),
        event("", Some("abort")),
        format!("data: {long}"),
    ] {
        let server = front(upstream(raw_parts(vec![begun.clone(), rest]).await, 4), false).await;
        let body = json!({"prompt": "Hi", "stream": true});
        let reply = complete(&server, &body).await;
        assert_eq!(reply.status, 200);
        let events = reply.events();
        assert_eq!(events[0]["choices"][0]["text"], "The");
        let last = events.last().unwrap();
        assert!(last["error"]["message"].as_str().unwrap().contains("upstream"), "{last}");
    }
}

#[tokio::test]
async fn a_server_that_counts_no_tokens_and_says_no_done_is_understood() {
    let events = [event("The", None), event(" quick", None), event("", Some("length"))];
    let answer = format!("{STREAM}: hello\r\n\r\n{}", events.concat());
    let server = front(upstream(raw(answer).await, 4), false).await;
    let reply = complete(&server, &json!({"prompt": "Hi"})).await.ok();
    assert_eq!(reply["choices"][0]["text"], "The quick");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn no_more_choices_are_open_than_the_deployment_allows() {
    let far = drystone(Bounds { step: Duration::from_millis(5), ..Bounds::default() }).await;
    let server = front(upstream(far.address, 2), false).await;
    let body = |n: usize| json!({"prompt": "Hi", "n": n, "max_tokens": 40, "temperature": 0});
    let (status, _, _, code) = complete(&server, &body(3)).await.error();
    assert_eq!((status, code), (429, json!("queue_full")));
    for _ in 0..2 {
        complete(&server, &body(2)).await.ok();
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_cancels_the_choice_upstream() {
    let far = drystone(Bounds { step: Duration::from_millis(20), ..Bounds::default() }).await;
    let server = front(upstream(far.address, 2), false).await;
    let body = json!({"prompt": "Hi", "max_tokens": 400, "stream": true, "ignore_eos": true});
    let asked = super::client::post_bytes("/v1/completions", &body);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&asked).await.unwrap();
    until("it runs there", || far.engine().load().running == 1).await;
    drop(stream);
    until("it ended there", || far.engine().load().running == 0).await;
}

#[tokio::test]
async fn tokens_are_shown_by_engines_of_this_process_alone() {
    let far = drystone(Bounds::default()).await;
    let server = front(upstream(far.address, 4), false).await;
    let body = json!({"prompt": "Hi", "logprobs": 1});
    assert_eq!(complete(&server, &body).await.error().0, 503);
    let server = front(upstream(far.address, 4), true).await;
    assert!(complete(&server, &body).await.ok()["choices"][0]["logprobs"].is_object());
}

#[tokio::test]
async fn an_upstream_that_goes_away_is_not_well_any_more() {
    let far = drystone(Bounds::default()).await;
    let server = front(upstream(far.address, 4), true).await;
    far.stop().await;
    until("it is noticed", || {
        gateway::surroundings::replicas(&server.app).iter().filter(|row| row.healthy).count() == 1
    })
    .await;
    get(server.address, "/ready").await;
    complete(&server, &json!({"prompt": "Hi"})).await.ok();
}

#[tokio::test]
async fn prompts_that_went_there_are_expected_in_its_cache() {
    let far = drystone(Bounds::default()).await;
    let server = front(upstream(far.address, 4), false).await;
    let prompt: Vec<u32> = (0..40u8).map(|at| token((b'a' + at % 7).into())).collect();
    let body = json!({"model": "sql", "prompt": prompt, "max_tokens": 1});
    complete(&server, &body).await.ok();
    let hit = |adapter| {
        let wanted = gateway::replicas::Wanted { adapter, prompt: &prompt, shows_tokens: false };
        let (_, columns) = server.app.replicas().unwrap().candidates(wanted);
        columns[0].prefix_hit
    };
    assert_eq!((hit(Some("sql")), hit(None)), (32.0 / 40.0, 0.0));
}
