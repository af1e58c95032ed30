//! What policies do to a whole answer before it is sent.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use contract::policy::Policy;
use contract::policy::completion::{End, Response, ResponseEdit};

use crate::accepted::Accepted;
use crate::answer::source::News;
use crate::answer::usage::Usage;
use crate::error::ApiError;

/// Shows the answer to the policies that want to see it, and makes their changes. Returns the
/// headers that they set.
pub async fn review(
    policy: &dyn Policy,
    accepted: &Accepted,
    written: &mut [News],
    usage: &Usage,
) -> Result<HeaderMap, ApiError> {
    let subject = accepted.subject();
    let mut headers = HeaderMap::new();
    if !policy.reads_response(&subject) {
        return Ok(headers);
    }
    let response = response(accepted, written, usage);
    for edit in policy.on_response(&subject, &response).await? {
        match edit {
            ResponseEdit::SetText(choice, text) => set_text(written, choice, text),
            ResponseEdit::SetHeader(name, value) => set_header(&mut headers, &name, &value),
        }
    }
    Ok(headers)
}

fn response(accepted: &Accepted, written: &[News], usage: &Usage) -> Response {
    let choice = |news: &News| {
        let end = news.finish.as_ref().map_or(End::Stop, |finish| finish.end);
        (news.text.clone(), end)
    };
    let mut adapter = None;
    accepted.note(|completion| adapter = completion.adapter.clone());
    Response { adapter, choices: written.iter().map(choice).collect(), usage: usage.told() }
}

/// The tokens go too: with them and their logprobs, the caller would have the old text.
fn set_text(written: &mut [News], choice: u32, text: String) {
    if let Some(news) = written.get_mut(choice as usize) {
        news.text = text;
        news.tokens.clear();
    }
}

fn set_header(headers: &mut HeaderMap, name: &str, value: &str) {
    match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        (Ok(name), Ok(value)) => drop(headers.insert(name, value)),
        _ => tracing::warn!(name, "a policy set a header that cannot be sent"),
    }
}
