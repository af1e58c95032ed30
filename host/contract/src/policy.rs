//! What an operator may decide about a request, hook by hook.
//!
//! The gateway asks through [`Policy`] and never learns who answers: [`builtin::Builtin`] on a
//! server without plugins, the `policy` crate where there are some. Answers are futures because a
//! guest that takes long gives way to other requests of the same thread; [`Asked::Now`] costs
//! nothing.

pub mod asked;
pub mod builtin;
pub mod chunk;
pub mod completion;
pub mod deploy;
pub mod hook;
pub mod replica;
pub mod subject;
pub mod verdict;

use std::sync::Arc;

use crate::policy::asked::Asked;
use crate::policy::chunk::Filter;
use crate::policy::completion::{Completion, Response, ResponseEdit};
use crate::policy::replica::{Demand, Load, Replica};
use crate::policy::subject::{Caller, Subject};
use crate::policy::verdict::{Admission, Denied, Identity, RequestVerdict, Selection, Source};

/// The hooks that the gateway asks, in the order a request meets them.
pub trait Policy: Send + Sync {
    /// Names of request headers, in lower case, that some plugin may read. The gateway puts these
    /// and no others into [`Subject::headers`].
    fn headers(&self) -> Arc<[String]> {
        Arc::new([])
    }

    /// Who is this, and may they call at all?
    fn authorize<'a>(&'a self, caller: &'a Caller<'a>) -> Asked<'a, Result<Identity, Denied>>;

    /// Whether [`Policy::on_request`] or another hook may read `subject`'s messages. Where it says
    /// no, they need not be there.
    fn reads_messages(&self, subject: &Subject) -> bool;

    /// What goes in: edit, refuse or answer it.
    fn on_request<'a>(&'a self, subject: &'a Subject) -> Asked<'a, RequestVerdict>;

    /// Which adapter answers? It need not be known.
    fn select_adapter<'a>(&'a self, subject: &'a Subject) -> Asked<'a, Result<Selection, Denied>>;

    /// Where is the adapter that nothing is served under the name of? `None`: nowhere.
    fn resolve_adapter<'a>(
        &'a self,
        subject: &'a Subject,
        name: &'a str,
    ) -> Asked<'a, Result<Option<Source>, Denied>>;

    /// Now, later, or not at all?
    fn admit<'a>(
        &'a self,
        subject: &'a Subject,
        load: &'a Load,
    ) -> Asked<'a, Result<Admission, Denied>>;

    /// A finite score for each replica, in their order; the lowest wins. Refused where a policy
    /// that may not be done without has none.
    fn score_replicas<'a>(
        &'a self,
        subject: &'a Subject,
        demand: &'a Demand,
        replicas: &'a [Replica],
    ) -> Asked<'a, Result<Vec<f32>, Denied>>;

    /// What the text of one choice passes on its way out; `None` where no policy looks at it.
    fn filter(&self, subject: &Arc<Subject>, choice: u32) -> Option<Box<dyn Filter>>;

    /// A whole answer before it is sent. Streams meet [`Policy::filter`] alone.
    fn on_response<'a>(
        &'a self,
        subject: &'a Subject,
        response: &'a Response,
    ) -> Asked<'a, Result<Vec<ResponseEdit>, Denied>>;

    /// Whether [`Policy::on_response`] would look at the answer to `subject`.
    fn reads_response(&self, subject: &Subject) -> bool;

    /// What a request came to. Returns at once; the work is done off the request's path.
    fn on_complete(&self, subject: &Arc<Subject>, completion: Completion);
}
