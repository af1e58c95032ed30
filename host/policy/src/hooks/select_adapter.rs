//! Which adapter answers?

use std::sync::Arc;

use config::settings::Limits;
use contract::policy::builtin::Builtin;
use contract::policy::hook::Hook;
use contract::policy::replica::Surroundings;
use contract::policy::subject::Subject;
use contract::policy::verdict::{Denied, Selection};
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types::Request;
use crate::bindings::exports::drystone::policy::select_adapter as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::guest::Ambient;
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, ambient, request};

/// Asks about one request.
pub(crate) struct SelectAdapter {
    pub(crate) request: Request,
    pub(crate) ambient: Ambient,
    /// What tells the adapters that are served; `None` where any name will do.
    pub(crate) served: Option<Arc<dyn Surroundings>>,
}

impl SelectAdapter {
    pub(crate) fn new(subject: &Subject, served: Option<Arc<dyn Surroundings>>) -> Self {
        Self { request: request(subject), ambient: ambient(subject), served }
    }

    /// An adapter that is served, or that may be found yet.
    fn known(&self, name: String) -> Result<String, String> {
        let name = check::name("an adapter", name)?;
        match &self.served {
            Some(served) if !served.adapter_exists(&name) => {
                Err(format!("no adapter is served under {name:?}"))
            }
            _ => Ok(name),
        }
    }
}

impl Question for SelectAdapter {
    const HOOK: Hook = Hook::SelectAdapter;
    type Answer = wit::Selection;
    /// `None` leaves it to the next one.
    type Verdict = Option<Result<Selection, Denied>>;

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.select_adapter else { return Ok(None) };
        hook.call_select_adapter(&mut instance.store, &self.request).await.map(Some)
    }

    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<Self::Verdict, String> {
        Ok(match answer {
            wit::Selection::Named => None,
            wit::Selection::Base => Some(Ok(Selection::Base)),
            wit::Selection::Adapter(name) => Some(Ok(Selection::Adapter(self.known(name)?))),
            wit::Selection::Refuse(denial) => {
                check::size(check::denial_texts(&denial), limits.output_bytes)?;
                Some(Err(check::denial(denial)?))
            }
        })
    }

    fn input(&self) -> Value {
        json!({ "request": self.request })
    }
}

impl Chains {
    /// The first answer other than `named` holds.
    pub(crate) async fn select_adapter(
        &self,
        chain: Chain,
        question: SelectAdapter,
        builtin: &Builtin,
    ) -> Result<Selection, Denied> {
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(Some(selection)) => return selection,
                Said::Verdict(None) | Said::Nothing => {}
                Said::Builtin => break,
                Said::Refused(denied) => return Err(denied),
            }
        }
        Ok(builtin.select(&question.request.model))
    }
}
