//! `GET /v1/models` and `/v1/models/{id}`: the base and every adapter that can be asked for.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::replicas::Replicas;

/// `GET /v1/models`
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": cards(&app, app.replicas()?)})))
}

/// `GET /v1/models/{id}`
pub async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let card = cards(&app, app.replicas()?).into_iter().find(|card| card["id"] == id);
    card.map(Json).ok_or(ApiError::ModelNotFound(id))
}

/// The base first, then the adapters by name.
fn cards(app: &App, replicas: &Replicas) -> Vec<Value> {
    let base = app.model_name.as_str();
    let card = |id: &str, parent: Option<&str>| {
        json!({
            "id": id, "object": "model", "created": app.created, "owned_by": "drystone",
            "root": base, "parent": parent, "max_model_len": replicas.context_max(),
        })
    };
    let adapters = replicas.adapter_names();
    let adapters = adapters.iter().map(|name| card(name, Some(base)));
    std::iter::once(card(base, None)).chain(adapters).collect()
}
