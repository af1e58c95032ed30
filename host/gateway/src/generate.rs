//! The handlers of routes with a JSON body: read it, ask the engine, answer.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use engine::handle::Engine;
use engine::text::Text;
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use crate::accepted::Accepted;
use crate::answer::opened::{Choice, Opened};
use crate::answer::source::Source;
use crate::answer::stream::EventStream;
use crate::answer::whole::whole;
use crate::app::App;
use crate::error::ApiError;
use crate::gate::JsonBytes;
use crate::hooks::{Consulted, admit, check_leaks, consult, introduce, select};
use crate::replicas::choose;
use crate::request::draft::Draft;
use crate::request::fields::Fields;
use crate::request::job::{Asker, Job};
use crate::request::{chat, completion};
use crate::tokenize;

/// Bodies above this are parsed and tokenized beside the runtime, so that they delay nobody.
const LIGHT_BYTES_MAX: usize = 16 << 10;

type Ask = (Extension<Accepted>, JsonBytes);
type Read = fn(&Fields<'_>, &Text) -> Result<Draft, ApiError>;

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
    (Extension(accepted), JsonBytes(body)): Ask,
    read: Read,
) -> Result<Response, ApiError> {
    let text = Arc::clone(app.replicas()?.text());
    let weight = body.len();
    let mut draft = read_draft(&app, &accepted, &text, body, read).await?;
    let weight = match consult(&app, &accepted, &mut draft, &text).await? {
        Consulted::Goes(more) => weight + more,
        Consulted::Said(said) => {
            let deadline = accepted.call().deadline;
            let choice = |_| Choice { source: Source::Said(Some(said.clone())), filter: None };
            let choices = (0..draft.prompts() * draft.n).map(choice).collect();
            return answer(&app, Opened::new(accepted, text, draft.done(), choices, deadline))
                .await;
        }
    };
    let adapter = select(&app, &accepted).await?;
    check_leaks(&app, &accepted, &draft)?;
    let encode = {
        let text = Arc::clone(&text);
        move || draft.encode(&text)
    };
    let job = work(&app, weight, encode).await?;
    let admission = admit(&app, &accepted, &job).await?;
    let id = Arc::clone(&accepted.call().id);
    let asker = Asker { id: &id, adapter, random: app.random(), admission };
    let deadline = accepted.call().deadline.shortened(asker.admission.deadline);
    let submitted = timeout_at(deadline.at, submit(&app, &accepted, &job, &asker)).await;
    let choices = submitted.map_err(|_| ApiError::Timeout(deadline.limit))??;
    answer(&app, Opened::new(accepted, text, job, choices, deadline)).await
}

async fn read_draft(
    app: &Arc<App>,
    accepted: &Accepted,
    text: &Arc<Text>,
    body: Bytes,
    read: Read,
) -> Result<Draft, ApiError> {
    let (shared, accepted, text) = (Arc::clone(app), accepted.clone(), Arc::clone(text));
    let read = move |fields: &Fields<'_>| {
        let model = model(&shared, fields)?;
        let mut draft = read(fields, &text)?;
        introduce(&shared, &accepted, model, &mut draft, &text);
        Ok(draft)
    };
    read_body(app, body, read).await
}

/// Hands a job to a replica.
async fn submit(
    app: &App,
    accepted: &Accepted,
    job: &Job,
    asker: &Asker<'_>,
) -> Result<Vec<Choice>, ApiError> {
    let subject = accepted.subject();
    let taken = choose::submit(app.replicas()?, &*app.policy, &subject, job, asker).await?;
    accepted.note(|completion| completion.replica = Some(taken.replica));
    let choice = |(index, source)| Choice { source, filter: app.policy.filter(&subject, index) };
    Ok((0..).zip(taken.sources).map(choice).collect())
}

async fn answer(app: &App, opened: Opened) -> Result<Response, ApiError> {
    let Some(stream) = opened.form.stream else {
        let deadline = opened.deadline;
        let whole = timeout_at(deadline.at, whole(opened, &*app.policy)).await;
        let (headers, body) = whole.map_err(|_| ApiError::Timeout(deadline.limit))??;
        return Ok((headers, Json(body)).into_response());
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
    (Extension(accepted), JsonBytes(body)): Ask,
    answer: fn(&Fields<'_>, &Engine) -> Result<Value, ApiError>,
) -> Result<Json<Value>, ApiError> {
    let engine = app.replicas()?.first().clone();
    let look = {
        let (app, engine) = (Arc::clone(&app), engine.clone());
        move |fields: &Fields<'_>| Ok((model(&app, fields)?, answer(fields, &engine)?))
    };
    let (model, answer) = read_body(&app, body, look).await?;
    accepted.learn(|subject| subject.model = model);
    select(&app, &accepted).await?;
    Ok(Json(answer))
}

/// The model that a request names; the base when it names none.
fn model(app: &App, fields: &Fields<'_>) -> Result<String, ApiError> {
    let model = fields.get("model", "a name that GET /v1/models lists", |_| true)?;
    Ok(model.unwrap_or_else(|| app.model_name.clone()))
}

/// Parses a body and does `look` with it.
async fn read_body<T: Send + 'static>(
    app: &App,
    body: Bytes,
    look: impl FnOnce(&Fields<'_>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    work(app, body.len(), move || look(&Fields::parse(&body)?)).await
}

/// Does `work` on a text of `bytes`: at once when it is small, else on a thread of its own.
async fn work<T: Send + 'static>(
    app: &App,
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= LIGHT_BYTES_MAX {
        return work();
    }
    let permit = app.heavy.clone().acquire_owned().await;
    let work = move || {
        let _permit = permit;
        work()
    };
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::Failed(error.to_string())))
}
