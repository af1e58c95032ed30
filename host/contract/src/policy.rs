//! What an operator may decide about a request, and the answers given when no policy is deployed.
//!
//! The gateway asks through [`Policy`]; it never learns who answers. [`Builtin`] is the answer of a
//! server without plugins.

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
