//! What an operator may decide about a request, and the answers given when no policy is deployed.
//!
//! The gateway asks through [`Policy`]; it never learns who answers. [`Builtin`] is the answer of a
//! server without plugins.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// Who is asking, as far as the gateway could tell.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    /// The bearer key, when one was sent.
    pub key: Option<&'a str>,
}

/// The tenant that a request is counted and limited under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(pub String);

/// A refusal that the caller gets to see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    /// HTTP status in the 4xx range.
    pub status: u16,
    /// Machine-readable code.
    pub code: &'static str,
    /// For the caller.
    pub message: String,
}

/// Where a request for a model name goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The base model.
    Base,
    /// The adapter served under this name.
    Adapter(String),
}

/// The hooks that the gateway asks, in the order a request meets them.
pub trait Policy: Send + Sync {
    /// Who is this, and may they call at all?
    fn authorize(&self, caller: &Caller<'_>) -> Result<Tenant, Denied>;

    /// Which adapter answers a request for `model`? `None`: nothing is served under that name.
    fn select_adapter(&self, tenant: &Tenant, model: &str) -> Result<Option<Selection>, Denied>;
}

/// The policy of a server without plugins: configured keys may call, and a model's name is the
/// base's or an adapter's.
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
}

impl Policy for Builtin {
    fn authorize(&self, caller: &Caller<'_>) -> Result<Tenant, Denied> {
        if self.tenants.is_empty() {
            return Ok(Tenant("anonymous".to_owned()));
        }
        let tenant = caller.key.and_then(|key| self.tenants.get(&digest(key)));
        tenant.cloned().ok_or_else(|| unauthorized(caller))
    }

    fn select_adapter(&self, _: &Tenant, model: &str) -> Result<Option<Selection>, Denied> {
        let base = model == self.base;
        Ok(Some(if base { Selection::Base } else { Selection::Adapter(model.to_owned()) }))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn unauthorized(caller: &Caller<'_>) -> Denied {
    let message = match caller.key {
        Some(_) => "the API key is not one of this server's",
        None => "no API key was sent: use the header `Authorization: Bearer KEY`",
    };
    Denied { status: 401, code: "invalid_api_key", message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builtin() -> Builtin {
        let keys = [("sk-a", "acme"), ("sk-b", "bolt")];
        Builtin::new("base", keys.map(|(key, name)| (key.to_owned(), Tenant(name.to_owned()))))
    }

    #[test]
    fn a_key_names_its_tenant_and_nothing_else_does() {
        let tenant = |key| builtin().authorize(&Caller { key }).map(|tenant| tenant.0);
        assert_eq!(tenant(Some("sk-b")), Ok("bolt".to_owned()));
        for wrong in [None, Some(""), Some("sk-"), Some("sk-bb"), Some("SK-B")] {
            let denied = tenant(wrong).expect_err("not a key");
            assert_eq!((denied.status, denied.code), (401, "invalid_api_key"), "{wrong:?}");
        }
    }

    #[test]
    fn without_keys_everybody_may_call() {
        let open = Builtin::new("base", []);
        assert!(open.authorize(&Caller { key: None }).is_ok());
        assert!(open.authorize(&Caller { key: Some("any") }).is_ok());
    }

    #[test]
    fn a_model_is_the_base_or_an_adapter() {
        let tenant = Tenant("acme".to_owned());
        let select = |model| builtin().select_adapter(&tenant, model);
        assert_eq!(select("base"), Ok(Some(Selection::Base)));
        assert_eq!(select("sql"), Ok(Some(Selection::Adapter("sql".to_owned()))));
    }
}
