//! Look at what goes in: edit it, refuse it, or answer it.

use config::settings::Limits;
use contract::policy::hook::Hook;
use contract::policy::subject::Subject;
use contract::policy::verdict::RequestVerdict;
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types::Request;
use crate::bindings::exports::drystone::policy::on_request as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::edits;
use crate::guest::Ambient;
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, ambient, request};

/// Asks about one request, as earlier plugins left it.
pub(crate) struct OnRequest {
    pub(crate) request: Request,
    pub(crate) subject: Subject,
}

impl OnRequest {
    pub(crate) fn new(subject: &Subject) -> Self {
        Self { request: request(subject), subject: subject.clone() }
    }
}

impl Question for OnRequest {
    const HOOK: Hook = Hook::OnRequest;
    type Answer = wit::Verdict;
    type Verdict = RequestVerdict;

    fn ambient(&self) -> Ambient {
        ambient(&self.subject)
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.on_request else { return Ok(None) };
        hook.call_on_request(&mut instance.store, &self.request).await.map(Some)
    }

    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<RequestVerdict, String> {
        Ok(match answer {
            wit::Verdict::Pass => RequestVerdict::Pass,
            wit::Verdict::Edit(edits) => {
                check::size(edits.iter().flat_map(edits::texts), limits.output_bytes)?;
                RequestVerdict::Edit(edits::checked(edits, &self.subject)?)
            }
            wit::Verdict::Refuse(denial) => {
                check::size(check::denial_texts(&denial), limits.output_bytes)?;
                RequestVerdict::Refuse(check::denial(denial)?)
            }
            wit::Verdict::Respond(text) => {
                check::size([&*text], limits.output_bytes)?;
                RequestVerdict::Respond(text)
            }
        })
    }

    fn input(&self) -> Value {
        json!({ "request": self.request })
    }
}

impl Chains {
    /// Edits add up, and later plugins see what earlier ones made of the request. The first refusal
    /// or answer ends the chain.
    pub(crate) async fn on_request(&self, chain: Chain, subject: &Subject) -> RequestVerdict {
        let mut question = OnRequest::new(subject);
        let mut edits = Vec::new();
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(RequestVerdict::Edit(more)) => {
                    let subject = edits::applied(&more, question.subject);
                    question = OnRequest { request: request(&subject), subject };
                    edits.extend(more);
                }
                Said::Verdict(RequestVerdict::Pass) | Said::Nothing => {}
                Said::Verdict(end) => return end,
                Said::Builtin => {
                    edits.clear();
                    question = OnRequest::new(subject);
                }
                Said::Refused(denied) => return RequestVerdict::Refuse(denied),
            }
        }
        if edits.is_empty() { RequestVerdict::Pass } else { RequestVerdict::Edit(edits) }
    }
}
