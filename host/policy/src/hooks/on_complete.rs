//! What a request came to.

use std::sync::Arc;
use std::time::Duration;

use config::settings::Limits;
use contract::policy::completion::{Completion, End, Usage};
use contract::policy::hook::Hook;
use contract::policy::subject::Subject;
use serde_json::{Value, json};

use crate::background::Background;
use crate::bindings::drystone::policy::types::{self, Finish, Request};
use crate::bindings::exports::drystone::policy::on_complete as wit;
use crate::chain::{Chain, Chains};
use crate::guest::Ambient;
use crate::instance::Instance;
use crate::question::{Question, ambient, request};

/// Tells about one request.
pub(crate) struct OnComplete {
    request: Request,
    completion: wit::Completion,
    ambient: Ambient,
}

impl OnComplete {
    fn new(subject: &Subject, completion: Completion) -> Self {
        let completion = wit::Completion {
            status: completion.status,
            adapter: completion.adapter,
            replica: completion.replica,
            finish: completion.end.map(finish),
            usage: usage(completion.usage),
            first_token_ms: completion.first_token.map(milliseconds),
            total_ms: milliseconds(completion.total),
        };
        Self { request: request(subject), completion, ambient: ambient(subject) }
    }
}

impl Question for OnComplete {
    const HOOK: Hook = Hook::OnComplete;
    type Answer = ();
    type Verdict = ();

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<()>> {
        let Some(hook) = &instance.hooks.on_complete else { return Ok(None) };
        hook.call_on_complete(&mut instance.store, &self.request, &self.completion).await.map(Some)
    }

    fn check(&self, (): (), _: &Limits) -> Result<(), String> {
        Ok(())
    }

    fn input(&self) -> Value {
        json!({ "request": self.request, "completion": self.completion })
    }
}

impl Chains {
    /// Has the plugins told in the background. Where too much waits there, it is dropped and
    /// counted.
    pub(crate) fn on_complete(
        &self,
        chain: Chain,
        subject: &Arc<Subject>,
        completion: Completion,
        background: &Background,
    ) {
        let plugins: Vec<_> = self.enforced(chain).cloned().collect();
        if plugins.is_empty() {
            return;
        }
        let (subject, told) = (subject.clone(), plugins.clone());
        let work = async move {
            let question = OnComplete::new(&subject, completion);
            for plugin in told {
                // The request is over: whatever comes of this was counted and logged.
                let _ = plugin.ask(&question).await;
            }
        };
        if !background.offer(work) {
            for plugin in plugins {
                plugin.metrics.completions_dropped.inc();
            }
        }
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Token counts as guests see them.
pub(crate) fn usage(usage: Usage) -> types::Usage {
    types::Usage {
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
    }
}

/// How a choice ended, as guests see it.
pub(crate) fn finish(end: End) -> Finish {
    match end {
        End::Stop => Finish::Stop,
        End::Length => Finish::Length,
        End::Policy => Finish::Policy,
        End::Failed => Finish::Failed,
        End::Cancelled => Finish::Cancelled,
    }
}
