//! `/admin`: plugins, replicas and adapters, for operators.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use contract::policy::deploy::{DeployError, PluginStatus, Plugins, Replacement};
use contract::policy::subject::{Caller, Headers, Route};
use contract::policy::verdict::Denied;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::gate::bearer;
use crate::request::fields::Fields;
use crate::surroundings;

/// Largest component that may be sent.
pub const COMPONENT_BYTES_MAX: usize = 64 << 20;

/// Lets holders of an admin key pass.
pub async fn authorize(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    check_key(&app, request.headers())?;
    Ok(next.run(request).await)
}

fn check_key(app: &App, headers: &HeaderMap) -> Result<(), Denied> {
    if app.settings.admin_keys.is_empty() {
        let message = "no admin key is configured: set server.admin_keys_file to open this";
        return Err(Denied::new(403, "admin_closed", message));
    }
    let (key, headers) = (bearer(headers), &Headers::default());
    app.admins.identify(&Caller { key, route: Route::Other, headers }).map(drop)
}

/// `GET /admin/plugins`
pub async fn plugins(State(app): State<Arc<App>>) -> Json<Value> {
    let rows = app.plugins.as_ref().map(|plugins| plugins.list()).unwrap_or_default();
    list(rows.iter().map(plugin))
}

/// `GET /admin/replicas`
pub async fn replicas(State(app): State<Arc<App>>) -> Json<Value> {
    list(surroundings::replicas(&app).into_iter().map(|row| {
        json!({
            "name": row.name, "healthy": row.healthy,
            "running": row.running, "waiting": row.waiting,
        })
    }))
}

/// `GET /admin/adapters`
pub async fn adapters(State(app): State<Arc<App>>) -> Json<Value> {
    list(
        surroundings::adapters(&app).into_iter().map(
            |row| json!({"name": row.name, "lora_rank": row.lora_rank, "resident": row.resident}),
        ),
    )
}

/// `POST /admin/plugins/{name}`
pub async fn replace(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let plugins = plugins_of(&app, &name)?;
    let with = replacement(request).await?;
    Ok(Json(plugin(&plugins.replace(&name, with).await?)))
}

/// `POST /admin/plugins/{name}/rollback`
pub async fn roll_back(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(plugin(&plugins_of(&app, &name)?.roll_back(&name)?)))
}

fn plugins_of<'a>(app: &'a App, name: &str) -> Result<&'a Arc<dyn Plugins>, DeployError> {
    app.plugins.as_ref().ok_or_else(|| DeployError::Unknown(name.to_owned()))
}

/// The component itself, or the path of its file.
async fn replacement(request: Request) -> Result<Replacement, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned());
    let kind = kind.unwrap_or_default();
    let body = Bytes::from_request(request, &()).await.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::BodyTooLarge { limit: COMPONENT_BYTES_MAX },
        _ => ApiError::BodyCut(error.body_text()),
    })?;
    match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/wasm" => Ok(Replacement::Bytes(body.into())),
        "application/json" => path(&Fields::parse(&body)?),
        _ => Err(ApiError::PluginType(kind)),
    }
}

fn path(fields: &Fields<'_>) -> Result<Replacement, ApiError> {
    let wanted = "the path of a component below policy.root";
    let path: Option<String> = fields.get("path", wanted, |path: &String| !path.is_empty())?;
    let path = path.ok_or_else(|| ApiError::invalid("path", "absent", wanted))?;
    Ok(Replacement::Path(path.into()))
}

fn list(rows: impl Iterator<Item = Value>) -> Json<Value> {
    Json(json!({"object": "list", "data": rows.collect::<Vec<_>>()}))
}

fn plugin(status: &PluginStatus) -> Value {
    json!({
        "name": status.name, "version": status.version, "sha256": status.sha256,
        "hooks": status.hooks, "mode": status.mode, "generation": status.generation,
        "can_roll_back": status.can_roll_back, "quarantined": status.quarantined,
        "last_error": status.last_error,
    })
}
