//! The adapters that can be served, and how one of them is loaded.

use std::path::PathBuf;

use contract::adapter::Kind;

/// An adapter that passed its checks at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name it is served under.
    pub name: String,
    /// Its PEFT folder.
    pub path: PathBuf,
    /// What it is on disk.
    pub kind: Kind,
    /// Largest full lora rank of any module.
    pub lora_rank: usize,
    /// Host memory that its generation takes, in bytes.
    pub bytes: usize,
    /// Loaded at start and never evicted from its slot.
    pub pinned: bool,
}
