//! The trait that a plugin implements.

use serde::de::DeserializeOwned;

use crate::host::text::{PatternSet, WordSet};
use crate::schema::Schema;
use crate::types::{
    Admission, AdmitVerdict, Caller, Chunk, ChunkVerdict, Completion, Demand, Denial, Identity,
    Load, Replica, Request, RequestVerdict, Resolution, Response, ResponseEdit, Selection,
};

/// A plugin. One method a hook; those that an implementation under `#[policy]` writes down are what
/// its component exports, so the server never asks the defaults, which do what it would do itself.
///
/// Hooks take `&self`: the server runs many instances and may start a new one for every request.
/// What has to last is kept in [`kv`](crate::host::kv).
#[expect(unused_variables, reason = "the defaults look at nothing")]
pub trait Policy: Sized + 'static {
    /// What the operator writes under `config`; see [`config`](macro@crate::config). A plugin
    /// without any takes [`NoConfig`](crate::NoConfig).
    type Config: DeserializeOwned + Schema;

    /// Request headers that the plugin wants to read, in lower case. It reads those that the
    /// operator grants as well.
    const HEADERS: &'static [&'static str] = &[];

    /// Starts an instance. Sets of patterns and words are made here and nowhere else. The operator
    /// sees the error.
    fn new(config: Self::Config, setup: &Setup) -> Result<Self, String>;

    /// For `on_chunk`: how many characters of the text the server holds back, so that a pattern up
    /// to this length is seen whole across chunks.
    fn hold_back(&self) -> u32 {
        0
    }

    /// Asked once after a load and before the new plugin answers anything. An error keeps the old
    /// one.
    fn self_test(&self) -> Result<(), String> {
        Ok(())
    }

    /// Who is calling, and may they?
    fn authorize(&self, caller: &Caller) -> Result<Identity, Denial> {
        Err(Denial::new(401, "unauthorized", "the plugin does not say who may call"))
    }

    /// Look at what goes in: edit it, refuse it, or answer it.
    fn on_request(&self, request: &Request) -> RequestVerdict {
        RequestVerdict::Pass
    }

    /// Which adapter answers?
    fn select_adapter(&self, request: &Request) -> Selection {
        Selection::Named
    }

    /// A name that nobody loaded: where is its adapter?
    fn resolve_adapter(&self, request: &Request, name: &str) -> Resolution {
        Resolution::NotFound
    }

    /// Now, later, or not at all?
    fn admit(&self, request: &Request, load: &Load) -> AdmitVerdict {
        AdmitVerdict::Admit(Admission::default())
    }

    /// Which replica runs it? One finite score for each, in their order; the lowest wins.
    fn score_replicas(&self, demand: &Demand, replicas: &[Replica]) -> Vec<f32> {
        vec![0.0; replicas.len()]
    }

    /// Look at what comes out, while it is written. The request is
    /// [`answer::asked`](crate::host::answer::asked).
    fn on_chunk(&self, chunk: &Chunk) -> ChunkVerdict {
        ChunkVerdict::Pass
    }

    /// Look at a whole answer before it is sent. Streams are `on_chunk`'s.
    fn on_response(&self, request: &Request, response: &Response) -> Vec<ResponseEdit> {
        Vec::new()
    }

    /// What a request came to. Asked off its path.
    fn on_complete(&self, request: &Request, completion: &Completion) {}
}

/// What can be made only while an instance starts.
#[derive(Debug)]
pub struct Setup(());

impl Setup {
    pub(crate) fn new() -> Self {
        Self(())
    }

    /// A set of regular expressions in the syntax of Rust's `regex`. Grant: `text`.
    pub fn patterns<S: AsRef<str>>(&self, patterns: &[S]) -> Result<PatternSet, String> {
        PatternSet::new(patterns)
    }

    /// A set of plain words, compared without regard to case. Grant: `text`.
    pub fn words<S: AsRef<str>>(&self, words: &[S]) -> Result<WordSet, String> {
        WordSet::new(words)
    }
}
