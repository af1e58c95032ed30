//! The handlers of routes with a JSON body: read it, ask the engine, answer.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use contract::policy::subject::Subject;
use contract::policy::verdict::Identity;
use engine::handle::Engine;
use engine::text::Text;
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::answer::head::Head;
use crate::answer::opened::Opened;
use crate::answer::stream::EventStream;
use crate::answer::whole::whole;
use crate::app::App;
use crate::error::ApiError;
use crate::gate::{Call, JsonBytes};
use crate::request::fields::Fields;
use crate::request::job::{Asker, Job};
use crate::request::{chat, completion};
use crate::tokenize;

/// Bodies above this are parsed and tokenized beside the runtime, so that they delay nobody.
const LIGHT_BYTES_MAX: usize = 16 << 10;

type Ask = (Extension<Call>, Extension<Identity>, JsonBytes);

/// `POST /v1/chat/completions`
pub async fn chat(State(app): State<Arc<App>>, ask: Ask) -> Result<Response, ApiError> {
    generate(app, ask, chat::read).await
}

/// `POST /v1/completions`
pub async fn completion(State(app): State<Arc<App>>, ask: Ask) -> Result<Response, ApiError> {
    generate(app, ask, completion::read).await
}

/// `POST /tokenize`
pub async fn tokenize(State(app): State<Arc<App>>, ask: Ask) -> Result<Json<Value>, ApiError> {
    look_up(app, ask, tokenize::tokenize).await
}

/// `POST /detokenize`
pub async fn detokenize(State(app): State<Arc<App>>, ask: Ask) -> Result<Json<Value>, ApiError> {
    look_up(app, ask, tokenize::detokenize).await
}

async fn generate(
    app: Arc<App>,
    (Extension(call), Extension(identity), JsonBytes(body)): Ask,
    read: fn(&Fields<'_>, &Text) -> Result<Job, ApiError>,
) -> Result<Response, ApiError> {
    let engine = app.replica()?.engine.clone();
    let prepare = {
        let (app, engine) = (app.clone(), engine.clone());
        move |fields: &Fields<'_>| {
            let model = model(&app, fields)?;
            Ok((model, read(fields, engine.text())?))
        }
    };
    let (model, job) = read_body(&app, body, prepare).await?;
    let subject = Subject { tenant: identity.tenant, model, ..Subject::default() };
    let adapter = app.select(&engine, &subject).await?;
    let asker = Asker { id: &call.id, adapter, random: app.random() };
    let tickets = job.submit(&engine, &asker)?;
    let head = Head::new(job.form.shape, &call.id, subject.model);
    let Job { form, prompts, n, .. } = job;
    answer(Opened { head, form, prompts, n, tickets, engine, deadline: call.deadline }).await
}

async fn answer(opened: Opened) -> Result<Response, ApiError> {
    let Some(stream) = opened.form.stream else {
        return Ok(Json(whole(opened).await?).into_response());
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let body = axum::body::Body::new(EventStream::new(opened, stream));
    Ok((headers, body).into_response())
}

/// Answers what needs the tokenizer only.
async fn look_up(
    app: Arc<App>,
    (_, Extension(identity), JsonBytes(body)): Ask,
    answer: fn(&Fields<'_>, &Engine) -> Result<Value, ApiError>,
) -> Result<Json<Value>, ApiError> {
    let engine = app.replica()?.engine.clone();
    let shared = app.clone();
    let look = move |fields: &Fields<'_>| Ok((model(&shared, fields)?, answer(fields, &engine)?));
    let (model, answer) = read_body(&app, body, look).await?;
    let subject = Subject { tenant: identity.tenant, model, ..Subject::default() };
    app.select(&app.replica()?.engine, &subject).await?;
    Ok(Json(answer))
}

/// The model that a request names; the base when it names none.
fn model(app: &App, fields: &Fields<'_>) -> Result<String, ApiError> {
    let model = fields.get("model", "a name that GET /v1/models lists", |_| true)?;
    Ok(model.unwrap_or_else(|| app.model_name.clone()))
}

/// Parses a body and does `work` with it: at once when it is small, else on a thread of its own.
async fn read_body<T: Send + 'static>(
    app: &App,
    body: Bytes,
    work: impl FnOnce(&Fields<'_>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body.len() <= LIGHT_BYTES_MAX {
        return work(&Fields::parse(&body)?);
    }
    let permit = app.heavy.clone().acquire_owned().await;
    let work = move || {
        let _permit = permit;
        work(&Fields::parse(&body)?)
    };
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::Failed(error.to_string())))
}
