//! The host as the gateway asks it.

use std::sync::Arc;

use contract::policy::Policy;
use contract::policy::asked::Asked;
use contract::policy::chunk::Filter;
use contract::policy::completion::{Completion, Response, ResponseEdit};
use contract::policy::hook::Hook;
use contract::policy::replica::{Demand, Load, Replica};
use contract::policy::subject::{Caller, Subject};
use contract::policy::verdict::{Admission, Denied, Identity, RequestVerdict, Selection, Source};

use crate::hooks::admit::Admit;
use crate::hooks::authorize::Authorize;
use crate::hooks::on_request::OnRequest;
use crate::hooks::on_response::OnResponse;
use crate::hooks::resolve_adapter::ResolveAdapter;
use crate::hooks::score_replicas::{ScoreReplicas, lowest, plain};
use crate::hooks::select_adapter::SelectAdapter;
use crate::host::Host;

/// Every hook goes the same way: a request that no plugin looks at is answered at once, and for the
/// others the chain is asked, then the shadows.
impl Policy for Host {
    fn headers(&self) -> Arc<[String]> {
        self.0.headers()
    }

    fn authorize<'a>(&'a self, caller: &'a Caller<'a>) -> Asked<'a, Result<Identity, Denied>> {
        let (chains, builtin) = (&self.0.chains, &self.0.builtin);
        let chain = chains.at(Hook::Authorize, caller.route);
        if chain.is_empty() {
            return Asked::now(builtin.identify(caller));
        }
        Asked::later(async move {
            let answer = chains.authorize(chain, caller, builtin).await;
            let ours = answer.clone();
            chains.shadow(chain, || Authorize::new(caller), move |theirs| *theirs != ours);
            answer
        })
    }

    fn reads_messages(&self, subject: &Subject) -> bool {
        self.0.chains.reads_messages(subject)
    }

    fn on_request<'a>(&'a self, subject: &'a Subject) -> Asked<'a, RequestVerdict> {
        let chains = &self.0.chains;
        let chain = chains.about(Hook::OnRequest, subject);
        if chain.is_empty() {
            return Asked::now(RequestVerdict::Pass);
        }
        Asked::later(async move {
            let answer = chains.on_request(chain, subject).await;
            let ours = answer.clone();
            chains.shadow(chain, || OnRequest::new(subject), move |theirs| *theirs != ours);
            answer
        })
    }

    fn select_adapter<'a>(&'a self, subject: &'a Subject) -> Asked<'a, Result<Selection, Denied>> {
        let (chains, builtin) = (&self.0.chains, &self.0.builtin);
        let chain = chains.about(Hook::SelectAdapter, subject);
        if chain.is_empty() {
            return Asked::now(Ok(builtin.select(&subject.model)));
        }
        Asked::later(async move {
            let served = self.0.served(subject);
            let question = || SelectAdapter::new(subject, served.clone());
            let answer = chains.select_adapter(chain, question(), builtin).await;
            let ours = answer.clone();
            let differs = move |theirs: &Option<_>| theirs.as_ref().is_some_and(|it| *it != ours);
            chains.shadow(chain, question, differs);
            answer
        })
    }

    fn resolve_adapter<'a>(
        &'a self,
        subject: &'a Subject,
        name: &'a str,
    ) -> Asked<'a, Result<Option<Source>, Denied>> {
        let chains = &self.0.chains;
        let chain = chains.about(Hook::ResolveAdapter, subject);
        if chain.is_empty() {
            return Asked::now(Ok(None));
        }
        Asked::later(async move {
            let answer = chains.resolve_adapter(chain, subject, name).await;
            let ours = answer.clone();
            let question = || ResolveAdapter::new(subject, name);
            chains.shadow(chain, question, move |theirs| *theirs != ours);
            answer
        })
    }

    fn admit<'a>(
        &'a self,
        subject: &'a Subject,
        load: &'a Load,
    ) -> Asked<'a, Result<Admission, Denied>> {
        let chains = &self.0.chains;
        let chain = chains.about(Hook::Admit, subject);
        if chain.is_empty() {
            return Asked::now(Ok(Admission::default()));
        }
        Asked::later(async move {
            let answer = chains.admit(chain, subject, load).await;
            let ours = answer.clone();
            chains.shadow(chain, || Admit::new(subject, load), move |theirs| *theirs != ours);
            answer
        })
    }

    fn score_replicas<'a>(
        &'a self,
        subject: &'a Subject,
        demand: &'a Demand,
        replicas: &'a [Replica],
    ) -> Asked<'a, Result<Vec<f32>, Denied>> {
        let chains = &self.0.chains;
        let chain = chains.about(Hook::ScoreReplicas, subject);
        if chain.is_empty() {
            return Asked::now(Ok(plain(replicas)));
        }
        Asked::later(async move {
            let scores = chains.score_replicas(chain, subject, demand, replicas).await;
            let ours = scores.as_deref().map_or(None, lowest);
            let question = || ScoreReplicas::new(subject, demand, replicas);
            chains.shadow(chain, question, move |theirs| lowest(theirs) != ours);
            scores
        })
    }

    fn filter(&self, subject: &Arc<Subject>, choice: u32) -> Option<Box<dyn Filter>> {
        let chain = self.0.chains.about(Hook::OnChunk, subject);
        self.0.chains.filter(chain, subject, choice)
    }

    fn on_response<'a>(
        &'a self,
        subject: &'a Subject,
        response: &'a Response,
    ) -> Asked<'a, Result<Vec<ResponseEdit>, Denied>> {
        let chains = &self.0.chains;
        let chain = chains.about(Hook::OnResponse, subject);
        if chain.is_empty() {
            return Asked::now(Ok(Vec::new()));
        }
        Asked::later(async move {
            let edits = chains.on_response(chain, subject, response).await;
            let ours = edits.clone().unwrap_or_default();
            let question = || OnResponse::new(subject, response);
            chains.shadow(chain, question, move |theirs| *theirs != ours);
            edits
        })
    }

    fn reads_response(&self, subject: &Subject) -> bool {
        !self.0.chains.about(Hook::OnResponse, subject).is_empty()
    }

    fn on_complete(&self, subject: &Arc<Subject>, completion: Completion) {
        let chain = self.0.chains.about(Hook::OnComplete, subject);
        self.0.chains.on_complete(chain, subject, completion, &self.0.completions);
    }
}
