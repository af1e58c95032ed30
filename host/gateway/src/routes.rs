//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use crate::admin::COMPONENT_BYTES_MAX;
use crate::app::App;
use crate::error::ApiError;
use crate::{adapters, admin, gate, generate, metrics, models, openapi};

type Route = (&'static str, MethodRouter<Arc<App>>);

/// For callers that the policy lets in.
pub fn guarded() -> Vec<Route> {
    vec![
        ("/v1/chat/completions", post(generate::chat)),
        ("/v1/completions", post(generate::completion)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::one)),
        ("/tokenize", post(generate::tokenize)),
        ("/detokenize", post(generate::detokenize)),
    ]
}

/// For operators.
pub fn admin() -> Vec<Route> {
    let replace = post(admin::replace).layer(DefaultBodyLimit::max(COMPONENT_BYTES_MAX));
    vec![
        ("/admin/plugins", get(admin::plugins)),
        ("/admin/plugins/{name}", replace),
        ("/admin/plugins/{name}/rollback", post(admin::roll_back)),
        ("/admin/replicas", get(admin::replicas)),
        ("/admin/adapters", get(admin::adapters)),
        ("/v1/load_lora_adapter", post(adapters::load)),
        ("/v1/unload_lora_adapter", post(adapters::unload)),
    ]
}

/// For whoever watches the server.
pub fn open() -> Vec<Route> {
    vec![
        ("/health", get(health)),
        ("/ready", get(ready)),
        ("/metrics", get(metrics::metrics)),
        ("/openapi.json", get(openapi::document)),
    ]
}

/// Every route, with what a call passes before it.
pub fn router(app: Arc<App>) -> Router {
    let add = |router: Router<_>, (path, method): Route| router.route(path, method);
    let guarded = guarded().into_iter().fold(Router::new(), add);
    let guarded = guarded.route_layer(from_fn_with_state(app.clone(), gate::authorize));
    let admin = admin().into_iter().fold(Router::new(), add);
    let admin = admin.route_layer(from_fn_with_state(app.clone(), admin::authorize));
    open()
        .into_iter()
        .fold(guarded.merge(admin), add)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(app.settings.body_bytes_max))
        .layer(from_fn_with_state(app.clone(), gate::arrive))
        .with_state(app)
}

/// Live: the process answers, and its ranks are not lost.
async fn health(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    match app.loaded() {
        Some(replicas) if replicas.is_dead() => Err(ApiError::Dead),
        _ => Ok(StatusCode::OK),
    }
}

/// Ready: a request would be taken, and is expected.
async fn ready(State(app): State<Arc<App>>) -> Result<StatusCode, ApiError> {
    app.replicas()?;
    if app.is_announced() { Ok(StatusCode::OK) } else { Err(ApiError::Starting) }
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::RouteNotFound(request.uri().path().to_owned())
}

async fn unknown_method(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(format!("{} {}", request.method(), request.uri().path()))
}
