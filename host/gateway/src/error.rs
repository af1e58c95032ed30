//! Every way a call can fail, and the one place that gives each its HTTP status and OpenAI body.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use contract::policy::deploy::DeployError;
use contract::policy::verdict::Denied;
use engine::handle::{RootError, SubmitError};
use serde_json::{Value, json};

use crate::adapters::AdapterError;

/// A call that got no answer. The text is for the caller.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field has a value that cannot be served.
    #[error("{message}")]
    Invalid {
        /// The field.
        param: &'static str,
        /// What was found and what would do.
        message: String,
    },
    /// A field that would change the answer, but is not supported.
    #[error("`{param}` is not supported by this server: leave it out")]
    Unsupported {
        /// The field.
        param: &'static str,
    },
    /// A field that would show what a policy takes out of the answer.
    #[error(
        "`{param}` is not supported for this request: a policy filters its answer, and they \
             would show the text as it was"
    )]
    Filtered {
        /// The field.
        param: &'static str,
    },
    /// The body is not a JSON object.
    #[error("the body must be a JSON object: {0}")]
    Json(String),
    /// The body is something else than JSON.
    #[error("the content type is `{0}`; send the header `Content-Type: application/json`")]
    ContentType(String),
    /// The body of a new plugin is neither of the two that there may be.
    #[error(
        "the content type is `{0}`; send a component as `application/wasm`, or the path of its \
             file as `application/json`"
    )]
    PluginType(String),
    /// An adapter was not loaded or unloaded.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A plugin stays as it was.
    #[error(transparent)]
    Deploy(#[from] DeployError),
    /// The body is too large.
    #[error("the body is larger than this server's limit of {limit} bytes")]
    BodyTooLarge {
        /// Largest body, in bytes.
        limit: usize,
    },
    /// The body did not arrive whole.
    #[error("the body could not be read: {0}")]
    BodyCut(String),
    /// A policy said no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Nothing is served under that name.
    #[error("the model `{0}` does not exist; GET /v1/models lists those that do")]
    ModelNotFound(String),
    /// No such path.
    #[error("there is no {0}; GET /openapi.json lists what there is")]
    RouteNotFound(String),
    /// The path knows other methods.
    #[error("{0} is not allowed here; GET /openapi.json lists what is")]
    MethodNotAllowed(String),
    /// The model is being loaded.
    #[error("the server is starting")]
    Starting,
    /// The server finishes what it runs and takes nothing new.
    #[error("the server is shutting down")]
    Draining,
    /// The ranks are lost.
    #[error("the server lost its ranks and must be restarted")]
    Dead,
    /// No replica that could run the request is well.
    #[error("no replica can run this request now; try again later")]
    NoReplica,
    /// An upstream failed.
    #[error("an upstream server failed: {0}")]
    Upstream(String),
    /// The engine did not take a sequence.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// It took too long.
    #[error("the request took longer than this server's limit of {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// The server could not go on.
    #[error("{0}")]
    Failed(String),
}

/// What is fixed about an error whoever meets it.
struct Class<'a> {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'a str>,
    param: Option<&'static str>,
}

impl<'a> Class<'a> {
    const fn new(status: StatusCode, kind: &'static str, code: Option<&'a str>) -> Self {
        Self { status, kind, code, param: None }
    }

    const fn request(status: StatusCode, code: Option<&'a str>) -> Self {
        Self::new(status, "invalid_request_error", code)
    }

    const fn about(self, param: &'static str) -> Self {
        Self { param: Some(param), ..self }
    }
}

impl ApiError {
    /// `field` has the value `found`, which is not `wanted`.
    pub fn invalid(param: &'static str, found: impl std::fmt::Display, wanted: &str) -> Self {
        Self::Invalid { param, message: format!("`{param}` is {found}; it must be {wanted}") }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.class().status
    }

    /// The error as OpenAI clients read it.
    pub fn body(&self) -> Value {
        let Class { kind, code, param, .. } = self.class();
        let message = self.to_string();
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    fn class(&self) -> Class<'_> {
        use StatusCode as S;
        match self {
            Self::Invalid { param, .. } => Class::request(S::BAD_REQUEST, None).about(param),
            Self::Unsupported { param } | Self::Filtered { param } => {
                Class::request(S::BAD_REQUEST, Some("unsupported_parameter")).about(param)
            }
            Self::Json(_) | Self::BodyCut(_) => Class::request(S::BAD_REQUEST, None),
            Self::Adapter(error) => adapter_class(error),
            Self::Deploy(error) => deploy_class(error),
            Self::ContentType(_) | Self::PluginType(_) => {
                Class::request(S::UNSUPPORTED_MEDIA_TYPE, None)
            }
            Self::BodyTooLarge { .. } => Class::request(S::PAYLOAD_TOO_LARGE, None),
            Self::Denied(denied) => denied_class(denied),
            Self::ModelNotFound(_) => {
                Class::request(S::NOT_FOUND, Some("model_not_found")).about("model")
            }
            Self::RouteNotFound(_) => Class::request(S::NOT_FOUND, None),
            Self::MethodNotAllowed(_) => Class::request(S::METHOD_NOT_ALLOWED, None),
            Self::Starting => Class::new(S::SERVICE_UNAVAILABLE, "server_error", Some("starting")),
            Self::Draining => Class::new(S::SERVICE_UNAVAILABLE, "server_error", Some("draining")),
            Self::Dead => Class::new(S::SERVICE_UNAVAILABLE, "server_error", Some("dead")),
            Self::NoReplica => {
                Class::new(S::SERVICE_UNAVAILABLE, "server_error", Some("no_replica"))
            }
            Self::Upstream(_) => Class::new(S::BAD_GATEWAY, "server_error", Some("upstream")),
            Self::Submit(error) => submit_class(error),
            Self::Timeout(_) => Class::new(S::REQUEST_TIMEOUT, "server_error", Some("timeout")),
            Self::Failed(_) => Class::new(S::INTERNAL_SERVER_ERROR, "server_error", None),
        }
    }

    /// Seconds after which trying again makes sense.
    fn retry_after(&self) -> Option<u32> {
        if let Self::Denied(Denied { retry_after_s: Some(seconds), .. }) = self {
            return Some(*seconds);
        }
        match self.status() {
            StatusCode::TOO_MANY_REQUESTS => Some(1),
            StatusCode::SERVICE_UNAVAILABLE => Some(5),
            _ => None,
        }
    }
}

fn denied_class(denied: &Denied) -> Class<'_> {
    let status = StatusCode::from_u16(denied.status).unwrap_or(StatusCode::FORBIDDEN);
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
            "invalid_request_error"
        }
        _ if status.is_server_error() => "server_error",
        _ => "permission_error",
    };
    Class::new(status, kind, Some(&denied.code))
}

/// Types are vLLM's.
fn adapter_class(error: &AdapterError) -> Class<'static> {
    use StatusCode as S;
    let invalid = |code| Class::new(S::BAD_REQUEST, "InvalidUserInput", Some(code));
    match error {
        AdapterError::Closed => {
            Class::new(S::FORBIDDEN, "permission_error", Some("adapters_closed"))
        }
        AdapterError::Incomplete | AdapterError::Nameless => invalid("incomplete"),
        AdapterError::Base(_) | AdapterError::Taken(_) => invalid("name_taken"),
        AdapterError::Root(RootError::Outside(_)) => invalid("adapter_path_forbidden"),
        AdapterError::Refused(_) => invalid("adapter_refused"),
        AdapterError::Unknown(_) | AdapterError::Root(RootError::Absent(_)) => {
            Class::new(S::NOT_FOUND, "NotFoundError", Some("adapter_not_found"))
        }
    }
}

fn deploy_class(error: &DeployError) -> Class<'static> {
    use StatusCode as S;
    match error {
        DeployError::Unknown(_) => Class::request(S::NOT_FOUND, Some("plugin_not_found")),
        DeployError::Refused(_) => Class::request(S::BAD_REQUEST, Some("plugin_refused")),
        DeployError::NoOlder(_) => Class::request(S::CONFLICT, Some("no_older_generation")),
    }
}

fn submit_class(error: &SubmitError) -> Class<'static> {
    use StatusCode as S;
    match error {
        SubmitError::QueueFull { .. } => {
            Class::new(S::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"))
        }
        SubmitError::Draining => {
            Class::new(S::SERVICE_UNAVAILABLE, "server_error", Some("draining"))
        }
        SubmitError::UnknownAdapter { .. } => {
            Class::request(S::NOT_FOUND, Some("model_not_found")).about("model")
        }
        SubmitError::AdapterRefused { .. } => {
            Class::request(S::BAD_REQUEST, Some("adapter_refused")).about("model")
        }
        SubmitError::EmptyPrompt => Class::request(S::BAD_REQUEST, None).about("prompt"),
        SubmitError::UnknownToken { .. } => Class::request(S::BAD_REQUEST, None),
        SubmitError::TooLong { .. } => {
            Class::request(S::BAD_REQUEST, Some("context_length_exceeded"))
        }
        SubmitError::Dead { .. } => {
            Class::new(S::SERVICE_UNAVAILABLE, "server_error", Some("dead"))
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self, "a request failed");
        }
        let mut response = (status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
