//! The end of a text that grows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that can be looked back at.
const BYTES: usize = 4 << 10;

/// The last bytes of a text. Clones are the same tail: a call is given one without a copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Option<Arc<Mutex<String>>>);

impl Tail {
    /// The tail of a text that is `text` so far.
    pub(crate) fn of(text: &str) -> Self {
        let mut tail = Self::default();
        tail.push(text);
        tail
    }

    /// The text goes on.
    pub(crate) fn push(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let mut kept = lock(self.0.get_or_insert_default());
        kept.push_str(text);
        // Not at every piece, for it moves what stays.
        if kept.len() > 2 * BYTES {
            let start = kept.ceil_char_boundary(kept.len() - BYTES);
            kept.drain(..start);
        }
    }

    /// The last bytes in whole characters, at most `bytes`.
    pub(crate) fn last(&self, bytes: usize) -> String {
        let Some(kept) = &self.0 else { return String::new() };
        let kept = lock(kept);
        let start = kept.len().saturating_sub(bytes.min(BYTES));
        kept[kept.ceil_char_boundary(start)..].to_owned()
    }
}

fn lock(kept: &Mutex<String>) -> MutexGuard<'_, String> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{BYTES, Tail};

    #[test]
    fn the_last_bytes_are_kept_in_whole_characters() {
        let mut tail = Tail::of("über");
        assert_eq!((tail.last(3), tail.last(4)), ("ber".to_owned(), "ber".to_owned()));
        assert_eq!(tail.last(100), "über");
        for _ in 0..BYTES {
            tail.push("éx");
        }
        let last = tail.last(usize::MAX);
        assert!(last.len() <= BYTES && last.len() > BYTES - 3 && last.ends_with("éx"));
        assert_eq!(Tail::default().last(9), "");
    }
}
