//! Clients that leave, are slow or too many, and servers that start and stop.

use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::client::{get, post, post_bytes, post_request, raw, send};
use super::script::{Bounds, FATAL_SEED, SENTENCE};
use super::server::{Options, Server, until};

const TEXT: &str = "/v1/completions";
const STEP: Duration = Duration::from_millis(10);

fn long(stream: bool) -> Value {
    json!({"prompt": "Hi", "stream": stream, "ignore_eos": true, "max_tokens": 500})
}

async fn raw_stream(server: &Server, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&post_bytes(TEXT, body)).await.unwrap();
    stream
}

async fn running(server: &Server, sequences: usize) {
    until("sequences run", || server.engine().load().running == sequences).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequences() {
    let server = Server::slow(STEP).await;
    for streamed in [true, false] {
        let mut body = long(streamed);
        body["n"] = 2.into();
        let connection = raw_stream(&server, &body).await;
        running(&server, 2).await;
        drop(connection);
        let engine = server.engine();
        until("they are gone", || engine.is_idle() && engine.load().blocks_used == 0).await;
    }
}

/// A client that asks for more than sockets hold, and reads none of it. The engine is done.
async fn stalled(server: &Server) -> TcpStream {
    let mut body = json!({"logprobs": true, "top_logprobs": 20, "n": 8, "max_tokens": 490});
    body["messages"] = json!([{"role": "user", "content": "Hi"}]);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stalled = socket.connect(server.address).await.unwrap();
    stalled.write_all(&post_bytes("/v1/chat/completions", &body)).await.unwrap();
    running(server, 8).await;
    until("the engine is done with it", || server.engine().is_idle()).await;
    stalled
}

async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection that was cut may end in a reset.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Lets time pass for timers only.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_and_loses_nothing() {
    let server = Server::slow(Duration::from_millis(1)).await;
    let stalled = stalled(&server).await;
    let other = json!({"prompt": "Hi", "temperature": 0, "max_tokens": 3});
    assert_eq!(post(server.address, TEXT, &other).await.ok()["choices"][0]["text"], "The");
    let answer = rest(stalled).await;
    assert_eq!(answer.matches("\"finish_reason\":\"length\"").count(), 8);
    assert_eq!(answer.matches("\"top_logprobs\":").count(), 8 * 490);
    assert!(answer.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut() {
    let server = Server::slow(Duration::from_millis(1)).await;
    let stalled = stalled(&server).await;
    sleep(Duration::from_millis(50)).await;
    pass(Duration::from_secs(61)).await;
    assert!(!rest(stalled).await.contains("[DONE]"));
}

#[tokio::test]
async fn a_quiet_stream_is_kept_alive() {
    let server = Server::slow(Duration::from_millis(200)).await;
    let body = json!({"prompt": "Hi", "stream": true, "max_tokens": 2});
    let stream = raw_stream(&server, &body).await;
    until("it is taken", || !server.engine().is_idle()).await;
    pass(Duration::from_secs(16)).await;
    let answer = rest(stream).await;
    assert_eq!(answer.matches(": keep-alive\n\n").count(), 1, "{answer}");
    assert!(answer.contains("[DONE]"));
}

#[tokio::test]
async fn a_full_queue_is_429_and_takes_none_of_the_choices() {
    let bounds = Bounds { step: STEP, sequences_max: 1, queue_max: 2 };
    let server = Server::with(Options { bounds: Some(bounds), ..Options::default() }).await;
    let first = raw_stream(&server, &long(true)).await;
    running(&server, 1).await;
    let body = json!({"prompt": "Hi", "n": 3});
    let reply = post(server.address, TEXT, &body).await;
    assert_eq!(reply.header("retry-after"), "1");
    let (status, _, _, code) = reply.error();
    assert_eq!((status, code), (429, json!("queue_full")));
    until("no choice waits", || server.engine().load().waiting == 0).await;
    drop(first);
    post(server.address, TEXT, &json!({"prompt": "Hi"})).await.ok();
}

#[tokio::test]
async fn a_server_without_its_model_is_alive_and_not_ready() {
    let mut server = Server::with(Options { bounds: None, ..Options::default() }).await;
    let address = server.address;
    assert_eq!(get(address, "/health").await.status, 200);
    assert_eq!(get(address, "/metrics").await.text, "# EOF\n");
    let replies = [
        get(address, "/ready").await,
        get(address, "/v1/models").await,
        post(address, TEXT, &json!({"prompt": "Hi"})).await,
        post(address, "/tokenize", &json!({"prompt": "Hi"})).await,
    ];
    for reply in replies {
        assert_eq!((reply.error().0, reply.error().3), (503, json!("starting")));
        assert_eq!(reply.header("retry-after"), "5");
    }
    server.open(Bounds::default());
    assert_eq!(get(address, "/ready").await.status, 200);
    post(address, TEXT, &json!({"prompt": "Hi"})).await.ok();
}

#[tokio::test]
async fn a_draining_server_ends_what_runs_and_takes_nothing_new() {
    let server = Server::slow(STEP).await;
    let address = server.address;
    let idle = TcpStream::connect(address).await.unwrap();
    let mut streamed = raw_stream(
        &server,
        &json!({"prompt": "Hi", "temperature": 0, "stream": true, "max_tokens": 45}),
    )
    .await;
    running(&server, 1).await;
    let (app, stopped) = (server.app.clone(), server.stop());
    until("it drains", || app.replicas().is_err()).await;
    for reply in [get(address, "/ready").await, post(address, TEXT, &json!({"prompt": "Hi"})).await]
    {
        assert_eq!((reply.error().0, reply.error().3), (503, json!("draining")));
        assert_eq!(reply.header("retry-after"), "5");
    }
    assert_eq!(get(address, "/health").await.status, 200);
    let mut answer = String::new();
    streamed.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("[DONE]") && answer.contains("\"finish_reason\":\"stop\""), "{answer}");
    timeout(Duration::from_secs(5), stopped).await.expect("an idle connection holds nothing up");
    assert!(TcpStream::connect(address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let bounds = Some(Bounds { step: STEP, ..Bounds::default() });
    let drain = Duration::from_millis(100);
    let server = Server::with(Options { bounds, drain, ..Options::default() }).await;
    let engine = server.engine().clone();
    let mut streamed = raw_stream(&server, &long(true)).await;
    running(&server, 1).await;
    let began = Instant::now();
    server.stop().await;
    assert!((100..2000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let mut answer = String::new();
    streamed.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("[DONE]"));
    until("the sequence is gone", || engine.is_idle()).await;
}

#[tokio::test]
async fn requests_that_take_too_long_are_ended() {
    let bounds = Some(Bounds { step: STEP, ..Bounds::default() });
    let request_timeout = Duration::from_millis(150);
    let server = Server::with(Options { bounds, request_timeout, ..Options::default() }).await;
    let (status, message, _, code) = post(server.address, TEXT, &long(false)).await.error();
    assert_eq!((status, code), (408, json!("timeout")), "{message}");
    until("the sequence is gone", || server.engine().is_idle()).await;
    // A body that never comes is no different.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    let answer = raw(server.address, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn lost_ranks_fail_the_request_and_the_health() {
    let server = Server::start().await;
    let body = json!({"prompt": "Hi", "seed": FATAL_SEED});
    let (status, message, ..) = post(server.address, TEXT, &body).await.error();
    assert_eq!(status, 500);
    assert!(message.contains("it was in the script"), "{message}");
    until("they are known to be lost", || server.engine().is_dead()).await;
    let replies = [
        get(server.address, "/health").await,
        get(server.address, "/ready").await,
        post(server.address, TEXT, &json!({"prompt": "Hi"})).await,
    ];
    for reply in replies {
        assert_eq!((reply.error().0, reply.error().3), (503, json!("dead")), "{}", reply.text);
    }
}

#[tokio::test]
async fn garbage_and_cut_requests_leave_the_server_alone() {
    let server = Server::start().await;
    for bytes in ["GARBAGE\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"] {
        let answer = raw(server.address, bytes.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{";
    let mut cut = TcpStream::connect(server.address).await.unwrap();
    cut.write_all(head.as_bytes()).await.unwrap();
    drop(cut);
    post(server.address, TEXT, &json!({"prompt": "Hi"})).await.ok();
}

#[tokio::test]
async fn a_connection_takes_one_request_after_the_other() {
    let server = Server::start().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for body in
        ["{\"prompt\": \"Hi\"}", "{\"prompt\": 3}", "{\"prompt\": \"Hi\", \"stream\": true}"]
    {
        sender.ready().await.unwrap();
        let response = sender.send_request(post_request(TEXT, body)).await.unwrap();
        let body = to_bytes(Body::new(response.into_body()), usize::MAX).await.unwrap();
        assert!(!body.is_empty());
    }
}

#[tokio::test]
async fn requests_have_names_of_their_own_or_the_callers() {
    let server = Server::start().await;
    let name = async |sent: Option<&str>| {
        let mut request = post_request("/detokenize", "{\"tokens\": []}");
        if let Some(sent) = sent {
            request.headers_mut().insert("x-request-id", sent.parse().unwrap());
        }
        send(server.address, request).await.header("x-request-id").to_owned()
    };
    assert_eq!(name(Some("mine-1")).await, "mine-1");
    let (first, second) = (name(None).await, name(None).await);
    assert!(first.len() == 16 && first != second, "{first} {second}");
    assert_eq!(name(Some(&"x".repeat(200))).await.len(), 16);
}

#[tokio::test]
async fn quick_streams_one_after_the_other_are_all_whole() {
    let server = Server::start().await;
    let body = json!({"prompt": "Hi", "temperature": 0, "stream": true, "max_tokens": 44});
    for _ in 0..50 {
        let events = post(server.address, TEXT, &body).await.events();
        let texts = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap());
        assert_eq!(texts.collect::<String>(), SENTENCE);
    }
}
