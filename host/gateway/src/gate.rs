//! What every call passes before its handler: a name, a deadline, and the question who asks.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use contract::policy::subject::{Caller, Headers, Route, Subject};
use tokio::time::{Instant, timeout_at};

use crate::accepted::Accepted;
use crate::app::App;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that a caller may give a request, in bytes.
const REQUEST_ID_MAX: usize = 128;

/// What is known about a call before its body is read.
#[derive(Clone, Debug)]
pub struct Call {
    /// The caller's `x-request-id`, or one made here.
    pub id: Arc<str>,
    /// When its head had been read.
    pub arrived: Instant,
    /// When the answer must be complete.
    pub deadline: Deadline,
}

/// When a request has taken too long.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// That moment.
    pub at: Instant,
    /// How long it had.
    pub limit: Duration,
}

impl Deadline {
    /// `limit` after `start`.
    pub fn new(start: Instant, limit: Duration) -> Self {
        Self { at: start + limit, limit }
    }

    /// The same unless `limit` from now is earlier.
    pub fn shortened(self, limit: Option<Duration>) -> Self {
        let other = limit.map(|limit| Self::new(Instant::now(), limit));
        other.filter(|other| other.at < self.at).unwrap_or(self)
    }
}

/// Names a call, ends it when it takes too long, and logs how it went. The deadline of a streamed
/// answer is minded by its body.
pub async fn arrive(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = named(request.headers()).unwrap_or_else(|| app.fresh_name());
    let arrived = Instant::now();
    let deadline = Deadline::new(arrived, app.settings.request_timeout);
    let call = Call { id: id.into(), arrived, deadline };
    request.extensions_mut().insert(call.clone());
    let asked = format!("{} {}", request.method(), request.uri().path());
    let answered = timeout_at(deadline.at, next.run(request)).await;
    let mut response =
        answered.unwrap_or_else(|_| ApiError::Timeout(deadline.limit).into_response());
    tracing::debug!(id = %call.id, status = response.status().as_u16(), "{asked}");
    if let Ok(id) = HeaderValue::from_str(&call.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Asks the policy who is calling, and counts them.
pub async fn authorize(
    State(app): State<Arc<App>>,
    Extension(call): Extension<Call>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let route = route(request.uri().path());
    let headers = granted(&app.policy.headers(), request.headers());
    let caller = Caller { key: bearer(request.headers()), route, headers: &headers };
    let identity = app.policy.authorize(&caller).await?;
    let (place, refused) = match app.places.enter(&identity) {
        Ok(place) => (place, None),
        Err(denied) => (None, Some(ApiError::from(denied))),
    };
    let id = call.id.clone();
    let subject = Subject { id, tenant: identity.tenant, route, headers, ..Subject::default() };
    let policy = Arc::clone(&app.policy);
    let accepted = Accepted::new(policy, call, subject, identity.max_tokens, place);
    request.extensions_mut().insert(accepted.clone());
    let response = match refused {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    };
    accepted.answered(response.status());
    Ok(response)
}

/// The headers of a call that policies may read.
fn granted(names: &[String], headers: &HeaderMap) -> Headers {
    if names.is_empty() {
        return Headers::default();
    }
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let granted = names.iter().flat_map(|name| {
        headers.get_all(name).iter().map(move |value| (name.clone(), text(value)))
    });
    Headers(Some(granted.collect()))
}

fn route(path: &str) -> Route {
    match path {
        "/v1/chat/completions" => Route::Chat,
        "/v1/completions" => Route::Completion,
        _ => Route::Other,
    }
}

fn named(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    (1..=REQUEST_ID_MAX).contains(&id.len()).then(|| id.to_owned())
}

/// The bearer key of a call.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// A body that claims to be JSON and is not too large.
pub struct JsonBytes(pub Bytes);

impl FromRequest<Arc<App>> for JsonBytes {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        Bytes::from_request(request, app).await.map(Self).map_err(|rejection| {
            match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    ApiError::BodyTooLarge { limit: app.settings.body_bytes_max }
                }
                _ => ApiError::BodyCut(rejection.body_text()),
            }
        })
    }
}

/// Only a page of another origin has a reason to send JSON under another name: browsers let it
/// send plain text and forms without asking this server.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(found) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let found = String::from_utf8_lossy(found.as_bytes());
    let kind = found.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::ContentType(found.into_owned()))
}
