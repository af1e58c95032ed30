//! The nine hooks: what each asks, what an answer means, and what a chain of answers comes to.

pub(crate) mod admit;
pub(crate) mod authorize;
pub(crate) mod on_chunk;
pub(crate) mod on_complete;
pub(crate) mod on_request;
pub(crate) mod on_response;
pub(crate) mod resolve_adapter;
pub(crate) mod score_replicas;
pub(crate) mod select_adapter;
