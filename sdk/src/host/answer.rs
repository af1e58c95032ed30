//! The answer that `on_chunk` looks at. Needs no grant.

use super::sys::answer as sys;
use crate::types::Request;

/// The request that is answered; none at other hooks, which are given it.
pub fn asked() -> Option<Request> {
    sys::asked()
}

/// Text that was released before, its last `bytes` bytes at most.
pub fn released(bytes: u32) -> String {
    sys::released(bytes)
}

/// What [`set_state`] kept for this choice; empty at first.
pub fn state() -> Vec<u8> {
    sys::state()
}

/// Keeps up to 4 KiB until the next chunk of this choice.
pub fn set_state(state: &[u8]) {
    sys::set_state(state);
}
