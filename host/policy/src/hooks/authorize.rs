//! Who is calling, and may they?

use config::settings::Limits;
use contract::policy::builtin::Builtin;
use contract::policy::hook::Hook;
use contract::policy::subject::{Caller, Headers, Tenant};
use contract::policy::verdict::{Denied, Identity};
use serde_json::{Value, json};

use crate::bindings::drystone::policy::types::Denial;
use crate::bindings::exports::drystone::policy::authorize as wit;
use crate::chain::{Chain, Chains};
use crate::check;
use crate::guest::{Ambient, Seen};
use crate::instance::Instance;
use crate::plugin::Said;
use crate::question::{Question, route};

/// Asks about one caller.
pub(crate) struct Authorize {
    pub(crate) caller: wit::Caller,
    pub(crate) headers: Headers,
}

impl Authorize {
    pub(crate) fn new(caller: &Caller<'_>) -> Self {
        let key = caller.key.map(str::to_owned);
        let headers = caller.headers.clone();
        Self { caller: wit::Caller { key, route: route(caller.route) }, headers }
    }
}

impl Question for Authorize {
    const HOOK: Hook = Hook::Authorize;
    type Answer = Result<wit::Identity, Denial>;
    type Verdict = Result<Identity, Denied>;

    fn ambient(&self) -> Ambient {
        Seen { headers: self.headers.clone(), ..Seen::default() }.ambient()
    }

    async fn ask(&self, instance: &mut Instance) -> wasmtime::Result<Option<Self::Answer>> {
        let Some(hook) = &instance.hooks.authorize else { return Ok(None) };
        hook.call_authorize(&mut instance.store, &self.caller).await.map(Some)
    }

    fn check(&self, answer: Self::Answer, limits: &Limits) -> Result<Self::Verdict, String> {
        match answer {
            Err(denial) => {
                check::size(check::denial_texts(&denial), limits.output_bytes)?;
                check::denial(denial).map(Err)
            }
            Ok(wit::Identity { tenant, limits }) => Ok(Ok(Identity {
                tenant: Tenant(check::name("a tenant", tenant)?),
                max_tokens: limits.max_tokens,
                concurrency: limits.concurrency,
            })),
        }
    }

    fn input(&self) -> Value {
        json!({ "caller": self.caller })
    }
}

impl Chains {
    /// The first denial ends the chain. Of several identities the last one holds, with the
    /// tightest limits of all.
    pub(crate) async fn authorize(
        &self,
        chain: Chain,
        caller: &Caller<'_>,
        builtin: &Builtin,
    ) -> Result<Identity, Denied> {
        let question = Authorize::new(caller);
        let mut known: Option<Identity> = None;
        for plugin in self.enforced(chain) {
            match plugin.hear(&question).await {
                Said::Verdict(identity) => known = Some(tightest(known, identity?)),
                Said::Nothing => {}
                Said::Builtin => known = Some(builtin.identify(caller)?),
                Said::Refused(denied) => return Err(denied),
            }
        }
        known.map_or_else(|| builtin.identify(caller), Ok)
    }
}

fn tightest(known: Option<Identity>, next: Identity) -> Identity {
    let Some(known) = known else { return next };
    Identity {
        tenant: next.tenant,
        max_tokens: smaller(known.max_tokens, next.max_tokens),
        concurrency: smaller(known.concurrency, next.concurrency),
    }
}

/// The smaller of two limits, where absent means none.
pub(crate) fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
