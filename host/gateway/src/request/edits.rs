//! The changes that policies make to a request.

use std::sync::Arc;

use contract::policy::subject::Message;
use contract::policy::verdict::{Denied, Edit};
use contract::sampling::Sampling;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::request::draft::{Draft, Input};
use crate::request::job::{STOP_BYTES_MAX, STOPS_MAX};
use crate::request::sampling::range;

/// What edits ask for besides changes to the draft.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Edited {
    /// Another model.
    pub model: Option<String>,
    /// Bytes of text that came in.
    pub bytes: usize,
    /// Some message or prompt is not what it was.
    pub texts: bool,
}

/// Makes `edits` in their order. One that cannot be made is the policy's fault, not the caller's.
pub fn apply(draft: &mut Draft, edits: Vec<Edit>) -> Result<Edited, ApiError> {
    let mut edited = Edited::default();
    for edit in edits {
        match edit {
            Edit::Model(name) => edited.model = Some(name),
            Edit::SetContent(at, text) => {
                edited.came(&text);
                set_content(&mut draft.input, at as usize, text)?;
            }
            Edit::InsertMessage(at, message) => {
                edited.came(&message.content);
                insert(messages(&mut draft.input)?, at as usize, message)?;
            }
            Edit::RemoveMessage(at) => {
                edited.texts = true;
                remove(messages(&mut draft.input)?, at as usize)?;
            }
            Edit::MaxTokens(max) => draft.manner.max_tokens = Some(max),
            Edit::Seed(seed) => draft.manner.seed = Some(seed),
            Edit::AddStop(stop) => add_stop(&mut draft.manner.stop, stop)?,
            edit => set_sampling(Arc::make_mut(&mut draft.manner.sampling), edit)?,
        }
    }
    Ok(edited)
}

impl Edited {
    fn came(&mut self, text: &str) {
        self.bytes += text.len();
        self.texts = true;
    }
}

fn failed(message: String) -> ApiError {
    tracing::warn!(message, "a policy made an edit that cannot be made");
    Denied::new(500, "policy_failed", message).into()
}

fn absent(at: usize) -> ApiError {
    failed(format!("a policy edited message {at}, which is not there"))
}

/// Other members of a message stay as the caller wrote them.
fn set_content(input: &mut Input, at: usize, text: String) -> Result<(), ApiError> {
    match input {
        Input::Chat(conversation) => {
            let message = conversation.chat.messages.get_mut(at);
            let message: Option<&mut Map<_, _>> = message.and_then(Value::as_object_mut);
            message.ok_or_else(|| absent(at))?.insert("content".to_owned(), text.into());
        }
        Input::Text { prompts, .. } => {
            prompts.get_mut(at).ok_or_else(|| absent(at))?.replace(text);
        }
    }
    Ok(())
}

fn messages(input: &mut Input) -> Result<&mut Vec<Value>, ApiError> {
    match input {
        Input::Chat(conversation) => Ok(&mut conversation.chat.messages),
        Input::Text { .. } => {
            Err(failed("a policy edited the messages of a request that has none".to_owned()))
        }
    }
}

fn insert(messages: &mut Vec<Value>, at: usize, message: Message) -> Result<(), ApiError> {
    if at > messages.len() {
        return Err(absent(at));
    }
    messages.insert(at, json!({"role": message.role, "content": message.content}));
    Ok(())
}

fn remove(messages: &mut Vec<Value>, at: usize) -> Result<(), ApiError> {
    if at >= messages.len() || messages.len() == 1 {
        return Err(absent(at));
    }
    messages.remove(at);
    Ok(())
}

fn add_stop(stops: &mut Vec<String>, stop: String) -> Result<(), ApiError> {
    if stops.len() >= STOPS_MAX || !(1..=STOP_BYTES_MAX).contains(&stop.len()) {
        return Err(failed("a policy added a stop text that is too long, or one too many".into()));
    }
    stops.push(stop);
    Ok(())
}

fn set_sampling(sampling: &mut Sampling, edit: Edit) -> Result<(), ApiError> {
    let (name, value, fits, place): (_, _, fn(&f32) -> bool, _) = match edit {
        Edit::TopK(top_k) => {
            sampling.top_k = top_k;
            return Ok(());
        }
        Edit::Temperature(value) => {
            ("temperature", value, range::temperature, &mut sampling.temperature)
        }
        Edit::TopP(value) => ("top_p", value, range::top_p, &mut sampling.top_p),
        Edit::MinP(value) => ("min_p", value, range::min_p, &mut sampling.min_p),
        Edit::RepetitionPenalty(value) => {
            let place = &mut sampling.repetition_penalty;
            ("repetition_penalty", value, range::repetition_penalty, place)
        }
        Edit::PresencePenalty(value) => {
            ("presence_penalty", value, range::penalty, &mut sampling.presence_penalty)
        }
        Edit::FrequencyPenalty(value) => {
            ("frequency_penalty", value, range::penalty, &mut sampling.frequency_penalty)
        }
        other => return Err(failed(format!("a policy made an unknown edit: {other:?}"))),
    };
    if !fits(&value) {
        return Err(failed(format!("a policy set `{name}` to {value}, which is out of range")));
    }
    *place = value;
    Ok(())
}
