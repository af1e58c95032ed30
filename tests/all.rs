//! The one test binary: what needs more than one crate, or the whole program.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

/// Who may know whom, and the sizes that keep files readable.
mod tidy;

/// What the ranks compute: against PEFT and transformers, alone and in a batch, cut in any way.
mod ranks;
