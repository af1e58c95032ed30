//! Request bodies: from JSON to what the engine is asked.

pub mod chat;
pub mod completion;
pub mod draft;
pub mod edits;
pub mod fields;
pub mod job;
pub mod sampling;
pub mod unsupported;
