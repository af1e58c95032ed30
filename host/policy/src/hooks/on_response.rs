//! Look at a whole answer before it is sent.

use config::settings::Limits;
use contract::policy::completion::{Response, ResponseEdit};
use contract::policy::hook::Hook;
use contract::policy::subject::Subject;
use contract::policy::verdict::Denied;
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types::Request;
use crate::bindings::exports::drystone::policy::on_response as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::guest::Ambient;
use crate::hooks::on_complete::{finish, usage};
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, ambient, request};

/// Asks about one answer, as earlier plugins left it.
pub(crate) struct OnResponse {
    request: Request,
    response: wit::Response,
    ambient: Ambient,
}

impl OnResponse {
    pub(crate) fn new(subject: &Subject, response: &Response) -> Self {
        let choices = response.choices.iter();
        let choice =
            |(text, end): &(String, _)| wit::Choice { text: text.clone(), finish: finish(*end) };
        let response = wit::Response {
            adapter: response.adapter.clone(),
            choices: choices.map(choice).collect(),
            usage: usage(response.usage),
        };
        Self { request: request(subject), response, ambient: ambient(subject) }
    }

    /// Shows the edits to the plugins that come.
    fn apply(&mut self, edits: &[ResponseEdit]) {
        for edit in edits {
            if let ResponseEdit::SetText(index, text) = edit {
                self.response.choices[*index as usize].text.clone_from(text);
            }
        }
    }
}

impl Question for OnResponse {
    const HOOK: Hook = Hook::OnResponse;
    type Answer = Vec<wit::Edit>;
    type Verdict = Vec<ResponseEdit>;

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.on_response else { return Ok(None) };
        hook.call_on_response(&mut instance.store, &self.request, &self.response).await.map(Some)
    }

    fn check(&self, edits: Vec<wit::Edit>, limits: &Limits) -> Result<Self::Verdict, String> {
        check::size(edits.iter().flat_map(texts), limits.output_bytes)?;
        edits.into_iter().map(|edit| checked(edit, self.response.choices.len())).collect()
    }

    fn input(&self) -> Value {
        json!({ "request": self.request, "response": self.response })
    }
}

fn texts(edit: &wit::Edit) -> Vec<&str> {
    match edit {
        wit::Edit::SetText((_, text)) => vec![text],
        wit::Edit::SetHeader((name, value)) => vec![name, value],
    }
}

fn checked(edit: wit::Edit, choices: usize) -> Result<ResponseEdit, String> {
    match edit {
        wit::Edit::SetText((index, _)) if index as usize >= choices => {
            Err(format!("there is no choice {index}, there are {choices}"))
        }
        wit::Edit::SetText((index, text)) => Ok(ResponseEdit::SetText(index, text)),
        wit::Edit::SetHeader((name, value)) => {
            Ok(ResponseEdit::SetHeader(check::header(&name, &value)?, value))
        }
    }
}

impl Chains {
    /// Edits add up, and later plugins see what earlier ones made of the answer.
    pub(crate) async fn on_response(
        &self,
        chain: Chain,
        subject: &Subject,
        response: &Response,
    ) -> Result<Vec<ResponseEdit>, Denied> {
        let mut question = OnResponse::new(subject, response);
        let mut edits = Vec::new();
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(more) => {
                    question.apply(&more);
                    edits.extend(more);
                }
                Said::Nothing => {}
                Said::Builtin => {
                    edits.clear();
                    question = OnResponse::new(subject, response);
                }
                Said::Refused(denied) => return Err(denied),
            }
        }
        Ok(edits)
    }
}
