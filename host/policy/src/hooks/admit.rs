//! Now, later, or not at all?

use std::time::Duration;

use config::settings::Limits;
use contract::policy::hook::Hook;
use contract::policy::replica::Load;
use contract::policy::subject::Subject;
use contract::policy::verdict::{Admission, Denied};
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types::Request;
use crate::bindings::exports::drystone::policy::admit as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::guest::Ambient;
use crate::hooks::authorize::smaller;
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, ambient, request};

/// Asks about one request.
pub(crate) struct Admit {
    request: Request,
    load: wit::Load,
    ambient: Ambient,
}

impl Admit {
    pub(crate) fn new(subject: &Subject, load: &Load) -> Self {
        let load = wit::Load {
            running: load.running,
            waiting: load.waiting,
            queue_max: load.queue_max,
            kv_used: load.kv_used,
        };
        Self { request: request(subject), load, ambient: ambient(subject) }
    }
}

impl Question for Admit {
    const HOOK: Hook = Hook::Admit;
    type Answer = wit::Verdict;
    type Verdict = Result<Admission, Denied>;

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.admit else { return Ok(None) };
        hook.call_admit(&mut instance.store, &self.request, self.load).await.map(Some)
    }

    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<Self::Verdict, String> {
        match answer {
            wit::Verdict::Admit(wit::Admission { priority, deadline_ms }) => {
                if !(-100..=100).contains(&priority) {
                    return Err(format!("priority {priority} is not from -100 to 100"));
                }
                let deadline = deadline_ms.map(|ms| Duration::from_millis(ms.into()));
                Ok(Ok(Admission { priority, deadline }))
            }
            wit::Verdict::Shed(denial) => {
                check::size(check::denial_texts(&denial), limits.output_bytes)?;
                check::denial(denial).map(Err)
            }
        }
    }

    fn input(&self) -> Value {
        json!({ "request": self.request, "load": self.load })
    }
}

impl Chains {
    /// The first to shed ends the chain. The last priority other than 0 holds, and the earliest
    /// deadline.
    pub(crate) async fn admit(
        &self,
        chain: Chain,
        subject: &Subject,
        load: &Load,
    ) -> Result<Admission, Denied> {
        let question = Admit::new(subject, load);
        let mut admission = Admission::default();
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(next) => admission = both(admission, next?),
                Said::Nothing => {}
                Said::Builtin => admission = Admission::default(),
                Said::Refused(denied) => return Err(denied),
            }
        }
        Ok(admission)
    }
}

fn both(first: Admission, next: Admission) -> Admission {
    let priority = if next.priority == 0 { first.priority } else { next.priority };
    Admission { priority, deadline: smaller(first.deadline, next.deadline) }
}
