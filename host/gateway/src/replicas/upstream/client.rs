//! HTTP to an upstream: one connection a request, so that none is found dead when it is used.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::http::request::Builder;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Where an upstream is, and the key that opens it.
pub struct Target {
    authority: String,
    host: String,
    port: u16,
    /// In front of every path.
    prefix: String,
    authorization: Option<String>,
}

/// An answer whose head was read. Dropping it closes the connection.
pub struct Reply {
    status: StatusCode,
    body: Incoming,
    _connection: Guard,
}

impl Target {
    /// The server at `http://host:port/prefix`.
    pub fn new(url: &str, key: Option<&str>) -> Self {
        let uri: Uri = url.parse().unwrap_or_default();
        let host = uri.host().unwrap_or_default();
        Self {
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(80),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            authorization: key.map(|key| format!("Bearer {key}")),
        }
    }

    /// `GET`; errors are told in words.
    pub async fn get(&self, path: &str) -> Result<Reply, String> {
        self.send(self.request(Method::GET, path), Body::empty()).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply, String> {
        let request = self.request(Method::POST, path);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        self.send(request, Body::from(body.to_string())).await
    }

    fn request(&self, method: Method, path: &str) -> Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.prefix));
        let request = request.header(header::HOST, &self.authority);
        match &self.authorization {
            Some(key) => request.header(header::AUTHORIZATION, key),
            None => request,
        }
    }

    async fn send(&self, request: Builder, body: Body) -> Result<Reply, String> {
        let request = request.body(body).map_err(|error| error.to_string())?;
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let stream = timeout(CONNECT_MAX, connect).await;
        let stream = stream.map_err(|_| "it cannot be reached in time".to_owned())?;
        let stream = stream.map_err(|error| format!("it cannot be reached: {error}"))?;
        let _ = stream.set_nodelay(true);
        let broke = |error: hyper::Error| format!("the connection broke off: {error}");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let connection = Guard(tokio::spawn(async move { drop(connection.await) }));
        let response = sender.send_request(request).await.map_err(broke)?;
        Ok(Reply { status: response.status(), body: response.into_body(), _connection: connection })
    }
}

/// Ends a connection when nobody wants its answer any more.
struct Guard(JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reply {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The next bytes of the body; `None` at its end.
    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                None => None,
                Some(Err(error)) => Some(Err(format!("it broke off: {error}"))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Some(Ok(data)),
                    Err(_trailers) => continue,
                },
            });
        }
    }

    /// The whole body as text, if it has at most `bytes_max` bytes.
    pub async fn text(&mut self, bytes_max: usize) -> Result<String, String> {
        let mut text = Vec::new();
        while let Some(data) = poll_fn(|context| self.poll_data(context)).await {
            let data = data?;
            if text.len() + data.len() > bytes_max {
                return Err(format!("its answer has more than {bytes_max} bytes"));
            }
            text.extend_from_slice(&data);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
