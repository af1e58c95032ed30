//! What hooks are asked, and what they answer. `sdk/wit` says what each field means.

pub use crate::bindings::admit::exports::drystone::policy::admit::{
    Admission, Load, Verdict as AdmitVerdict,
};
pub use crate::bindings::authorize::exports::drystone::policy::authorize::{
    Caller, Identity, Limits,
};
pub use crate::bindings::imports::drystone::policy::types::{
    Denial, Finish, Message, Request, Route, Usage,
};
pub use crate::bindings::on_chunk::exports::drystone::policy::on_chunk::{
    Chunk, Ending, Verdict as ChunkVerdict,
};
pub use crate::bindings::on_complete::exports::drystone::policy::on_complete::Completion;
pub use crate::bindings::on_request::exports::drystone::policy::on_request::{
    Edit, Verdict as RequestVerdict,
};
pub use crate::bindings::on_response::exports::drystone::policy::on_response::{
    Choice, Edit as ResponseEdit, Response,
};
pub use crate::bindings::resolve_adapter::exports::drystone::policy::resolve_adapter::{
    Resolution, Source,
};
pub use crate::bindings::score_replicas::exports::drystone::policy::score_replicas::Demand;
pub use crate::bindings::select_adapter::exports::drystone::policy::select_adapter::Selection;

use crate::bindings::score_replicas::exports::drystone::policy::score_replicas::Table;

/// One replica that could run the request. Its place in the list is its name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Replica {
    /// Sequences that run.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Share of its KV cache that is in use, 0 to 1.
    pub kv_used: f32,
    /// The adapter is in a slot already. True for the base.
    pub adapter_resident: bool,
    /// Share of the prompt that its prefix cache is expected to hold, 0 to 1.
    pub prefix_hit: f32,
    /// A local engine, not an upstream server.
    pub local: bool,
}

impl Replica {
    /// The rows of a table. Columns that this version does not know are left out.
    pub(crate) fn rows(table: &Table) -> Vec<Self> {
        let rows = table.numbers.chunks_exact((table.columns as usize).max(1));
        rows.filter_map(|row| row.first_chunk().map(Self::row)).collect()
    }

    fn row(row: &[f32; 6]) -> Self {
        let [running, waiting, kv_used, adapter_resident, prefix_hit, local] = *row;
        Self {
            running: running as u32,
            waiting: waiting as u32,
            kv_used,
            adapter_resident: adapter_resident != 0.0,
            prefix_hit,
            local: local != 0.0,
        }
    }
}

impl Denial {
    /// A refusal with this HTTP status, `error.code` and text for the caller.
    pub fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), retry_after_s: None }
    }

    /// The same, with a `Retry-After` header.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }
}

impl Default for Request {
    /// A chat request that says nothing, for tests to fill in.
    fn default() -> Self {
        Self {
            id: String::new(),
            tenant: String::new(),
            model: String::new(),
            route: Route::Chat,
            prompt_tokens: 0,
            max_tokens: None,
            streamed: false,
        }
    }
}

impl Default for Limits {
    /// No limits.
    fn default() -> Self {
        Self { max_tokens: None, concurrency: None }
    }
}

impl Default for Admission {
    /// The usual priority and no deadline.
    fn default() -> Self {
        Self { priority: 0, deadline_ms: None }
    }
}
