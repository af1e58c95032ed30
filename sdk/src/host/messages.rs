//! Texts of the request under way; a prompt of `/v1/completions` counts as one of the user's.
//! Grant: `messages = true`.

use super::sys::messages as sys;
use super::text::Set;
use crate::types::Message;

/// All of them.
pub fn all() -> impl DoubleEndedIterator<Item = Message> {
    (0..sys::count()).filter_map(sys::get)
}

/// How many there are.
pub fn count() -> u32 {
    sys::count()
}

/// One of them.
pub fn get(index: u32) -> Option<Message> {
    sys::get(index)
}

/// Which patterns of a set occur in any message: their indices, each once. The texts stay with the
/// host.
pub fn matches(set: &impl Set) -> Vec<u32> {
    sys::matches(set.number())
}
