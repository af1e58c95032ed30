//! Headers of the request under way. Grant: `headers = ["x-name", ...]`, and
//! [`Policy::HEADERS`](crate::Policy::HEADERS) must name them too.

use super::sys::headers as sys;

/// The value of a granted header; none for all others.
pub fn get(name: &str) -> Option<String> {
    sys::header(name)
}
