//! The commands, and those deeds that every hook can do.

use std::hint::black_box;

use drystone_sdk::host::log;
use drystone_sdk::types::Denial;

/// Bytes of an answer that is too large.
const HUGE: usize = 1 << 20;
/// Bytes of an argument to the host that is too large.
const BIG_IMPORT: usize = 40 << 20;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Behave,
    Spin,
    Recurse,
    Bomb,
    Trap,
    Panic,
    BigImport,
    Chatter,
    Fail,
    Huge,
    Nan,
    UnknownAdapter,
    BadHeader,
    BadStatus,
    BadIndex,
    HoldForever,
    Hoard,
}

const WORDS: &[(&str, Command)] = &[
    ("behave", Command::Behave),
    ("spin", Command::Spin),
    ("recurse", Command::Recurse),
    ("bomb", Command::Bomb),
    ("trap", Command::Trap),
    ("panic", Command::Panic),
    ("big-import", Command::BigImport),
    ("chatter", Command::Chatter),
    ("fail", Command::Fail),
    ("huge", Command::Huge),
    ("nan", Command::Nan),
    ("unknown-adapter", Command::UnknownAdapter),
    ("bad-header", Command::BadHeader),
    ("bad-status", Command::BadStatus),
    ("bad-index", Command::BadIndex),
    ("hold-forever", Command::HoldForever),
    ("hoard", Command::Hoard),
];

impl Command {
    /// The command that a word stands for.
    pub fn read(word: &str) -> Option<Self> {
        WORDS.iter().find(|(name, _)| *name == word).map(|(_, command)| *command)
    }

    /// The command at `hook` of a word that may name one: `trap.admit` is to trap in `admit`, and
    /// to behave elsewhere.
    pub fn at(hook: &str, word: &str) -> Option<Self> {
        match word.split_once('.') {
            None => Self::read(word),
            Some((word, place)) if place == hook => Self::read(word),
            Some((word, _)) => Self::read(word).map(|_| Self::Behave),
        }
    }

    /// Does what needs no answer to be done.
    pub fn carry_out(self) {
        match self {
            Self::Spin => spin(),
            Self::Recurse => drop(black_box(recurse(0))),
            Self::Bomb => bomb(),
            Self::Trap => trap(),
            Self::Panic => panic!("told to panic"),
            Self::BigImport => log::info(&"x".repeat(BIG_IMPORT)),
            Self::Chatter => (0..100_000).for_each(|line| log::info(&format!("line {line}"))),
            _ => {}
        }
    }

    /// A text, or one that is too long.
    pub fn text(self, usual: &str) -> String {
        match self {
            Self::Huge => "x".repeat(HUGE),
            _ => usual.to_owned(),
        }
    }

    /// The refusals that no server should send as they are.
    pub fn denial(self) -> Option<Denial> {
        match self {
            Self::BadStatus => Some(Denial::new(200, "fine", "a refusal that is none")),
            Self::BadHeader => Some(Denial::new(403, "a\r\nset-cookie: b=1", "a\r\n\r\nbody")),
            _ => None,
        }
    }
}

fn spin() {
    let mut turns = 0u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

#[expect(unconditional_recursion, reason = "that is the deed")]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth + 1))) + 1
}

fn bomb() {
    let mut kept = Vec::new();
    loop {
        kept.push(black_box(vec![1u8; 1 << 20]));
    }
}

fn trap() {
    #[cfg(target_family = "wasm")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_family = "wasm"))]
    panic!("a trap");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_commands() {
        assert_eq!(Command::read("nan"), Some(Command::Nan));
        assert_eq!(Command::read("llama"), None);
        assert_eq!(Command::at("admit", "trap"), Some(Command::Trap));
        assert_eq!(Command::at("admit", "trap.admit"), Some(Command::Trap));
        assert_eq!(Command::at("on-chunk", "trap.admit"), Some(Command::Behave));
        assert_eq!(Command::at("on-chunk", "gpt-4.1"), None);
    }

    #[test]
    fn only_bad_commands_refuse() {
        assert_eq!(Command::Behave.denial(), None);
        assert_eq!(Command::BadStatus.denial().map(|denial| denial.status), Some(200));
    }
}
