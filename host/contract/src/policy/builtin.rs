//! The answers of a server without plugins.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::policy::Policy;
use crate::policy::asked::Asked;
use crate::policy::chunk::Filter;
use crate::policy::completion::{Completion, Response, ResponseEdit};
use crate::policy::replica::{Demand, Load, Replica};
use crate::policy::subject::{Caller, Subject, Tenant};
use crate::policy::verdict::{Admission, Denied, Identity, RequestVerdict, Selection, Source};

/// Configured keys may call, a model's name is the base's or an adapter's, and the least loaded
/// replica that knows most of a request runs it.
pub struct Builtin {
    base: String,
    tenants: HashMap<[u8; 32], Tenant>,
}

impl Builtin {
    /// Serves `base` under that name to holders of one of `keys`; to everybody when there are none.
    ///
    /// Only digests of the keys are kept. Looking a digest up may take a time that depends on it,
    /// but a caller cannot choose a digest piece by piece, so the time tells nothing about a key.
    pub fn new(base: &str, keys: impl IntoIterator<Item = (String, Tenant)>) -> Self {
        let tenants = keys.into_iter().map(|(key, tenant)| (digest(&key), tenant));
        Self { base: base.to_owned(), tenants: tenants.collect() }
    }

    /// The tenant whose key this is.
    pub fn identify(&self, caller: &Caller<'_>) -> Result<Identity, Denied> {
        if self.tenants.is_empty() {
            return Ok(identity(Tenant("anonymous".to_owned())));
        }
        let tenant = caller.key.and_then(|key| self.tenants.get(&digest(key)));
        tenant.cloned().map(identity).ok_or_else(|| unauthorized(caller))
    }

    /// The base or the adapter that has the name `model`.
    pub fn select(&self, model: &str) -> Selection {
        let base = model == self.base;
        if base { Selection::Base } else { Selection::Adapter(model.to_owned()) }
    }
}

/// Waiting sequences weigh more than running ones. An adapter to load weighs as much as a few
/// sequences, a prompt found in the cache as much less.
pub fn score(replica: &Replica) -> f32 {
    const WAITING: f32 = 2.0;
    const KV: f32 = 4.0;
    const LOAD: f32 = 4.0;
    const PREFIX: f32 = 4.0;
    let busy = replica.running as f32 + WAITING * replica.waiting as f32 + KV * replica.kv_used;
    let load = if replica.adapter_resident { 0.0 } else { LOAD };
    busy + load - PREFIX * replica.prefix_hit
}

impl Policy for Builtin {
    fn authorize<'a>(&'a self, caller: &'a Caller<'a>) -> Asked<'a, Result<Identity, Denied>> {
        Asked::now(self.identify(caller))
    }

    fn reads_messages(&self, _: &Subject) -> bool {
        false
    }

    fn on_request<'a>(&'a self, _: &'a Subject) -> Asked<'a, RequestVerdict> {
        Asked::now(RequestVerdict::Pass)
    }

    fn select_adapter<'a>(&'a self, subject: &'a Subject) -> Asked<'a, Result<Selection, Denied>> {
        Asked::now(Ok(self.select(&subject.model)))
    }

    fn resolve_adapter<'a>(
        &'a self,
        _: &'a Subject,
        _: &'a str,
    ) -> Asked<'a, Result<Option<Source>, Denied>> {
        Asked::now(Ok(None))
    }

    fn admit<'a>(&'a self, _: &'a Subject, _: &'a Load) -> Asked<'a, Result<Admission, Denied>> {
        Asked::now(Ok(Admission::default()))
    }

    fn score_replicas<'a>(
        &'a self,
        _: &'a Subject,
        _: &'a Demand,
        replicas: &'a [Replica],
    ) -> Asked<'a, Result<Vec<f32>, Denied>> {
        Asked::now(Ok(replicas.iter().map(score).collect()))
    }

    fn filter(&self, _: &Arc<Subject>, _: u32) -> Option<Box<dyn Filter>> {
        None
    }

    fn on_response<'a>(
        &'a self,
        _: &'a Subject,
        _: &'a Response,
    ) -> Asked<'a, Result<Vec<ResponseEdit>, Denied>> {
        Asked::now(Ok(Vec::new()))
    }

    fn reads_response(&self, _: &Subject) -> bool {
        false
    }

    fn on_complete(&self, _: &Arc<Subject>, _: Completion) {}
}

fn identity(tenant: Tenant) -> Identity {
    Identity { tenant, ..Identity::default() }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn unauthorized(caller: &Caller<'_>) -> Denied {
    let message = match caller.key {
        Some(_) => "the API key is not one of this server's",
        None => "no API key was sent: use the header `Authorization: Bearer KEY`",
    };
    Denied::new(401, "invalid_api_key", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::subject::{Headers, Route};

    fn builtin() -> Builtin {
        let keys = [("sk-a", "acme"), ("sk-b", "bolt")];
        Builtin::new("base", keys.map(|(key, name)| (key.to_owned(), Tenant(name.to_owned()))))
    }

    fn tenant(builtin: &Builtin, key: Option<&str>) -> Result<String, Denied> {
        let caller = Caller { key, route: Route::Chat, headers: &Headers::default() };
        builtin.identify(&caller).map(|identity| identity.tenant.0)
    }

    #[test]
    fn a_key_names_its_tenant_and_nothing_else_does() {
        assert_eq!(tenant(&builtin(), Some("sk-b")), Ok("bolt".to_owned()));
        for wrong in [None, Some(""), Some("sk-"), Some("sk-bb"), Some("SK-B")] {
            let denied = tenant(&builtin(), wrong).expect_err("not a key");
            assert_eq!((denied.status, &*denied.code), (401, "invalid_api_key"), "{wrong:?}");
        }
    }

    #[test]
    fn without_keys_everybody_may_call() {
        let open = Builtin::new("base", []);
        assert!(tenant(&open, None).is_ok());
        assert!(tenant(&open, Some("any")).is_ok());
    }

    #[test]
    fn a_model_is_the_base_or_an_adapter() {
        assert_eq!(builtin().select("base"), Selection::Base);
        assert_eq!(builtin().select("sql"), Selection::Adapter("sql".to_owned()));
    }

    #[test]
    fn the_least_loaded_replica_wins_unless_another_knows_the_request() {
        let idle = Replica { adapter_resident: true, ..Replica::default() };
        let busy = Replica { running: 2, ..idle };
        assert!(score(&idle) < score(&busy));
        assert!(score(&busy) < score(&Replica { adapter_resident: false, ..idle }));
        assert!(score(&Replica { prefix_hit: 0.9, ..busy }) < score(&idle));
    }
}
