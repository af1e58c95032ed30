//! The questions that a request meets between its body and the engine, in their order.

use std::sync::Arc;

use contract::policy::subject::Subject;
use contract::policy::verdict::{Admission, RequestVerdict, Selection};
use engine::handle::Engine;
use engine::text::Text;

use crate::accepted::Accepted;
use crate::app::App;
use crate::error::ApiError;
use crate::request::draft::Draft;
use crate::request::edits::{self, Edited};
use crate::request::job::Job;

/// Adds to the subject what the body says, and bounds what may be generated.
pub fn introduce(app: &App, accepted: &Accepted, model: String, draft: &mut Draft, text: &Text) {
    bound(accepted, draft);
    let (max_tokens, streamed) = (draft.manner.max_tokens, draft.form.stream.is_some());
    accepted.learn(|subject| {
        *subject = Subject { model, max_tokens, streamed, ..std::mem::take(subject) };
        if app.policy.reads_messages(subject) {
            subject.messages = draft.messages(text);
        }
    });
}

/// The tenant's limit holds over the caller's wish and a policy's edit.
fn bound(accepted: &Accepted, draft: &mut Draft) {
    draft.manner.max_tokens = accepted.bound(draft.manner.max_tokens);
    let min_tokens = draft.manner.sampling.min_tokens;
    if let Some(max) = draft.manner.max_tokens.filter(|&max| max < min_tokens) {
        Arc::make_mut(&mut draft.manner.sampling).min_tokens = max;
    }
}

/// What a policy made of a request.
pub enum Consulted {
    /// It goes on, with so many bytes of new text.
    Goes(usize),
    /// This is the answer.
    Said(String),
}

/// Asks `on_request`, and makes its edits.
pub async fn consult(
    app: &App,
    accepted: &Accepted,
    draft: &mut Draft,
    text: &Text,
) -> Result<Consulted, ApiError> {
    let subject = accepted.subject();
    let edits = match app.policy.on_request(&subject).await {
        RequestVerdict::Pass => return Ok(Consulted::Goes(0)),
        RequestVerdict::Refuse(denied) => return Err(denied.into()),
        RequestVerdict::Respond(text) => return Ok(Consulted::Said(text)),
        RequestVerdict::Edit(edits) => edits,
    };
    drop(subject);
    let Edited { model, bytes, texts } = edits::apply(draft, edits)?;
    bound(accepted, draft);
    accepted.learn(|subject| {
        subject.max_tokens = draft.manner.max_tokens;
        subject.model = model.unwrap_or_else(|| std::mem::take(&mut subject.model));
        if texts && !subject.messages.is_empty() {
            subject.messages = draft.messages(text);
        }
    });
    Ok(Consulted::Goes(bytes))
}

/// The adapter that answers, `None` for the base. One that was refused at start passes: the engine
/// says why it cannot be served.
pub async fn select(
    app: &App,
    accepted: &Accepted,
    engine: &Engine,
) -> Result<Option<String>, ApiError> {
    let subject = accepted.subject();
    let Selection::Adapter(name) = app.policy.select_adapter(&subject).await? else {
        return Ok(None);
    };
    if !known(engine, &name) {
        let source = app.policy.resolve_adapter(&subject, &name).await?;
        let source = source.ok_or_else(|| ApiError::ModelNotFound(subject.model.clone()))?;
        app.load_adapter(&name, source).await?;
    }
    accepted.note(|completion| completion.adapter = Some(name.clone()));
    Ok(Some(name))
}

fn known(engine: &Engine, name: &str) -> bool {
    let catalogue = engine.catalogue();
    catalogue.get(name).is_ok() || catalogue.refused().any(|refused| refused.name == name)
}

/// Asks whether the request may run, and how it waits.
pub async fn admit(app: &App, accepted: &Accepted, job: &Job) -> Result<Admission, ApiError> {
    let tokens: usize = job.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    accepted.learn(|subject| subject.prompt_tokens = tokens as u32);
    let load = app.load()?;
    Ok(app.policy.admit(&accepted.subject(), &load).await?)
}

/// Refuses a request whose answer a policy filters, but that asks for the tokens themselves.
pub fn check_leaks(app: &App, accepted: &Accepted, draft: &Draft) -> Result<(), ApiError> {
    let Some(param) = draft.leak() else { return Ok(()) };
    match app.policy.filter(&accepted.subject(), 0) {
        Some(_) => Err(ApiError::Filtered { param }),
        None => Ok(()),
    }
}
