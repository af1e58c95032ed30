//! The one test binary: what needs more than one crate, or the whole program.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

/// Who may know whom, and the sizes that keep files readable.
mod tidy;

/// What the ranks compute: against PEFT and transformers, alone and in a batch, cut in any way.
mod ranks;

/// The engine over real ranks, with steps started ahead and without.
mod ahead;

/// The program, started and stopped as a user does.
mod program;

/// The demo: right answers over HTTP from every adapter, a graceful end.
mod demo;

/// The command line's answers to right and wrong deployments.
mod cli;

/// The official OpenAI client library against the program.
mod openai;

/// The plugins that come with the repository: built from source and as they are committed.
mod plugins;

/// Policies in the running program, those that misbehave too.
mod policies;

/// What a guest can do wrong, hook by hook, and what operators get to read.
mod bad_guests;

/// Policies and the text of answers: filters, shadows, recordings, upstreams.
mod answers;

/// Plugins that change under load.
mod swaps;
