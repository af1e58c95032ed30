//! Keeps guests from filling the server's log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longest line.
const LINE_BYTES: usize = 1 << 10;
/// Lines of one plugin per window.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts the lines of one plugin.
#[derive(Debug)]
pub(crate) struct LogGate(Mutex<Count>);

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
}

/// Whether a line may go out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    Free,
    /// It does, and is the last of this window.
    Last,
    Muted,
}

impl LogGate {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Count { since: now, lines: 0 }))
    }

    /// Asks for one line.
    pub(crate) fn pass(&self, now: Instant) -> Passage {
        let mut count = self.0.lock().expect("nothing panics while it counts");
        if now.duration_since(count.since) >= WINDOW {
            *count = Count { since: now, lines: 0 };
        }
        count.lines = count.lines.saturating_add(1);
        match count.lines {
            ..LINES => Passage::Free,
            LINES => Passage::Last,
            _ => Passage::Muted,
        }
    }
}

/// The first part of `line`, on one line: a guest must not be able to feign lines of others.
pub(crate) fn clean(line: &str) -> String {
    let end = line.floor_char_boundary(LINE_BYTES);
    line[..end].replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_so_many_lines_and_the_next_one_again() {
        let start = Instant::now();
        let gate = LogGate::new(start);
        let mut passed: Vec<_> = (0..LINES + 2).map(|_| gate.pass(start)).collect();
        assert_eq!(
            passed.split_off(LINES as usize - 1),
            [Passage::Last, Passage::Muted, Passage::Muted]
        );
        assert!(passed.iter().all(|passage| *passage == Passage::Free));
        assert_eq!(gate.pass(start + WINDOW), Passage::Free);
    }

    #[test]
    fn a_line_is_cut_between_characters_and_stays_one_line() {
        let long = "é".repeat(LINE_BYTES);
        assert_eq!(clean(&long).len(), LINE_BYTES);
        assert_eq!(clean("a\nb\x1b[1m"), "a b [1m");
    }
}
