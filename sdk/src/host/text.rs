//! Work on texts at the host's speed. Grant: `text = true`.
//!
//! Sets are made by [`Setup`](crate::Setup) when an instance starts.

use super::sys::text as sys;

/// A set of regular expressions that the host keeps.
#[derive(Debug)]
pub struct PatternSet(u32);

/// A set of plain words that the host keeps, compared without regard to case.
#[derive(Debug)]
pub struct WordSet(u32);

/// What the host can look for in a text: a [`PatternSet`] or a [`WordSet`].
pub trait Set: sealed::Sealed {
    /// The number by which the host knows it.
    fn number(&self) -> u32;

    /// Which members occur in a text: their indices, each once, ascending.
    fn matches(&self, text: &str) -> Vec<u32> {
        sys::matches(self.number(), text)
    }

    /// The text with every match replaced, or none if there is no match. `$1` stands for a group.
    fn redact(&self, text: &str, replacement: &str) -> Option<String> {
        sys::redact(self.number(), text, replacement)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::PatternSet {}
    impl Sealed for super::WordSet {}
}

impl PatternSet {
    pub(crate) fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, String> {
        sys::patterns(&owned(patterns)).map(Self)
    }
}

impl WordSet {
    pub(crate) fn new<S: AsRef<str>>(words: &[S]) -> Result<Self, String> {
        sys::words(&owned(words)).map(Self)
    }
}

impl Set for PatternSet {
    fn number(&self) -> u32 {
        self.0
    }
}

impl Set for WordSet {
    fn number(&self) -> u32 {
        self.0
    }
}

fn owned<S: AsRef<str>>(texts: &[S]) -> Vec<String> {
    texts.iter().map(|text| text.as_ref().to_owned()).collect()
}

/// Tokens of the base model.
pub fn count_tokens(text: &str) -> u32 {
    sys::count_tokens(text)
}

/// The same number for the same text on every machine and in every version.
pub fn hash(text: &str) -> u64 {
    sys::hash(text)
}
