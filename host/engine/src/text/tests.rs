//! Tests of text in and out: every kind of decoder, templates, and a folder's files.

/// Text from tokens as they come is the text of the whole.
mod detokenizing;
/// Model folders written for a test.
mod fixture;
/// What a folder's files say about tokens and sampling.
mod folders;
/// Stop texts, whatever pieces a text comes in.
mod stops;
/// Chat templates as transformers renders them.
mod templates;
