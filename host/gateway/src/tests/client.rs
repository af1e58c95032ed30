//! Calls over a socket: parsed by hyper where the answer counts, raw where the bytes do.

use std::net::SocketAddr;

use axum::body::{Body, to_bytes};
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The body as JSON of a call that went well.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    /// One of the headers, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `(status, message, param, code)` of an error.
    pub fn error(&self) -> (u16, String, Value, Value) {
        let error = &self.json()["error"];
        let message = error["message"].as_str().expect("a message").to_owned();
        assert!(error["type"].is_string(), "{error}");
        (self.status.as_u16(), message, error["param"].clone(), error["code"].clone())
    }

    /// The data of every event, without the closing `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let body = self.text.strip_suffix("data: [DONE]\n\n").expect("a [DONE]");
        let data = body.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// Sends a request on a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Body>) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(Body::new(body), usize::MAX).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    Reply { status: parts.status, headers: parts.headers, text }
}

/// A request with a JSON body.
pub fn post_request(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("host", "test");
    request.header("content-type", "application/json").body(body.into()).unwrap()
}

/// `POST` with a JSON body.
pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    send(address, post_request(path, body.to_string())).await
}

/// `GET`.
pub async fn get(address: SocketAddr, path: &str) -> Reply {
    let request = Request::get(path).header("host", "test").body(Body::empty()).unwrap();
    send(address, request).await
}

/// Sends bytes and reads until the server closes.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// A `POST` as bytes, for [`raw`] or a stream that the test reads itself.
pub fn post_bytes(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
