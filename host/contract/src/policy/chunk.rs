//! What policies do to text on its way out.

use crate::policy::asked::Asked;
use crate::policy::verdict::Denied;

/// What the text of one choice passes. It sees the pieces in order, whole answers as one piece.
pub trait Filter: Send {
    /// Takes the next piece; `last` with the final one, which may be empty. Nothing may be pushed
    /// after the last piece, a stop or an error.
    fn push<'a>(&'a mut self, piece: &'a str, last: bool) -> Asked<'a, Result<Released, Denied>>;
}

/// What may go out now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Goes on from what was released before.
    pub text: String,
    /// The choice ends here, with `finish_reason` = `content_filter`.
    pub stopped: bool,
}
