//! What a hook asks of a guest.

use std::future::Future;

use config::settings::Limits;
use contract::policy::hook::Hook;
use contract::policy::subject::Subject;
use serde::Serialize;
use serde_json::Value;

use crate::bindings::drystone::policy::types::{Request, Route};
use crate::guest::{Ambient, Seen};
use crate::instance::Instance;

/// One call of a hook. It owns what it asks with, so that it may outlive the request.
pub(crate) trait Question: Send + Sync {
    const HOOK: Hook;
    /// What the guest says.
    type Answer: Serialize + Send + Sync;
    /// What that means, checked.
    type Verdict: Send;

    /// What the guest may look at meanwhile.
    fn ambient(&self) -> Ambient;

    /// Asks. `None` if the instance does not have the hook.
    fn ask(
        &self,
        instance: &mut Instance,
    ) -> impl Future<Output = wasmtime::Result<Option<Self::Answer>>> + Send;

    /// What the answer means, or what is wrong with it.
    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<Self::Verdict, String>;

    /// What was asked, for recordings.
    fn input(&self) -> Value;
}

/// A request as guests see it.
pub(crate) fn request(subject: &Subject) -> Request {
    Request {
        id: subject.id.to_string(),
        tenant: subject.tenant.0.clone(),
        model: subject.model.clone(),
        route: route(subject.route),
        prompt_tokens: subject.prompt_tokens,
        max_tokens: subject.max_tokens,
        streamed: subject.streamed,
    }
}

/// Which API, as guests see it.
pub(crate) fn route(route: contract::policy::subject::Route) -> Route {
    use contract::policy::subject::Route as Ours;
    match route {
        Ours::Chat => Route::Chat,
        Ours::Completion => Route::Completion,
        Ours::Other => Route::Other,
    }
}

/// What guests may look at while they are asked about `subject`.
pub(crate) fn ambient(subject: &Subject) -> Ambient {
    seen(subject).ambient()
}

/// The same, to be added to.
pub(crate) fn seen(subject: &Subject) -> Seen {
    Seen { headers: subject.headers.clone(), messages: subject.messages.clone(), ..Seen::default() }
}
