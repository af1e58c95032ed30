//! Sets of patterns that plugins make once and search texts with at the host's speed.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use sha2::{Digest, Sha256};

/// Sets of one plugin.
const SETS: usize = 64;
/// Patterns of one set.
const PATTERNS: usize = 256;
/// Size of a compiled set. It bounds its patterns one by one as well.
const SET_BYTES: usize = 4 << 20;

/// The sets of one generation of a plugin. All its instances share them: the same patterns have
/// the same number, whichever instance makes them.
#[derive(Debug, Default)]
pub struct Texts(RwLock<Vec<Arc<Set>>>);

#[derive(Debug)]
struct Set {
    /// What it was made of.
    source: Vec<String>,
    all: RegexSet,
    each: Vec<Regex>,
}

impl Texts {
    /// The number of a set of regular expressions.
    pub fn patterns(&self, patterns: Vec<String>) -> Result<u32, String> {
        if let Some(known) = self.find(&patterns) {
            return Ok(known);
        }
        let set = Arc::new(Set::new(patterns)?);
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Another instance may have made it meanwhile.
        let known = sets.iter().position(|known| known.source == set.source);
        let number = known.unwrap_or(sets.len());
        if number >= SETS {
            return Err(format!("a plugin may have {SETS} sets of patterns"));
        }
        if number == sets.len() {
            sets.push(set);
        }
        Ok(number as u32)
    }

    /// The number of a set of words, found in any case and inside longer words too.
    pub fn words(&self, words: Vec<String>) -> Result<u32, String> {
        let literal = |word: &String| format!("(?i){}", regex::escape(word));
        self.patterns(words.iter().map(literal).collect())
    }

    /// Which patterns of a set occur in `text`, ascending; none if there is no such set.
    pub fn matches(&self, set: u32, text: &str) -> Vec<u32> {
        let set = self.get(set);
        set.map(|set| set.all.matches(text).iter().map(|i| i as u32).collect()).unwrap_or_default()
    }

    /// `text` with every match replaced, pattern after pattern; `None` if nothing matches. `$1`
    /// stands for a group.
    pub fn redact(&self, set: u32, text: &str, replacement: &str) -> Option<String> {
        let set = self.get(set)?;
        if !set.all.is_match(text) {
            return None;
        }
        let replace = |text: String, pattern: &Regex| match pattern.replace_all(&text, replacement)
        {
            Cow::Borrowed(_) => text,
            Cow::Owned(replaced) => replaced,
        };
        Some(set.each.iter().fold(text.to_owned(), replace))
    }

    fn find(&self, source: &[String]) -> Option<u32> {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.iter().position(|set| set.source == source).map(|i| i as u32)
    }

    fn get(&self, set: u32) -> Option<Arc<Set>> {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.get(set as usize).cloned()
    }
}

impl Set {
    fn new(source: Vec<String>) -> Result<Self, String> {
        if source.len() > PATTERNS {
            return Err(format!("a set may have {PATTERNS} patterns, not {}", source.len()));
        }
        let compile = |pattern: &String| RegexBuilder::new(pattern).size_limit(SET_BYTES).build();
        let all = RegexSetBuilder::new(&source).size_limit(SET_BYTES).build();
        let all = all.map_err(|error| error.to_string())?;
        let each: Result<_, _> = source.iter().map(compile).collect();
        Ok(Self { all, each: each.map_err(|error| error.to_string())?, source })
    }
}

/// The first eight bytes of the SHA-256 of `text`, big-endian.
pub fn hash(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    digest[..8].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_same_patterns_have_the_same_number() {
        let texts = Texts::default();
        let first = texts.patterns(strings(&["a+", "b"])).unwrap();
        let second = texts.words(strings(&["Bomb", "a.b"])).unwrap();
        assert_ne!(first, second);
        assert_eq!(texts.patterns(strings(&["a+", "b"])), Ok(first));
        assert_eq!(texts.words(strings(&["Bomb", "a.b"])), Ok(second));
    }

    #[test]
    fn matches_are_told_once_and_in_order() {
        let texts = Texts::default();
        let set = texts.patterns(strings(&["x", r"\d{3}", "b$"])).unwrap();
        assert_eq!(texts.matches(set, "123 456 b"), [1, 2]);
        assert_eq!(texts.matches(set + 1, "123"), [0; 0]);
        let words = texts.words(strings(&["straße", "a.b"])).unwrap();
        assert_eq!(texts.matches(words, "die STRAßE"), [0]);
        assert_eq!(texts.matches(words, "axb"), [0; 0]);
    }

    #[test]
    fn patterns_are_replaced_one_after_the_other() {
        let texts = Texts::default();
        let set = texts.patterns(strings(&[r"(\w+)@\w+\.com", "ann"])).unwrap();
        assert_eq!(texts.redact(set, "to ann@x.com", "<$1>").as_deref(), Some("to <<>>"));
        assert_eq!(texts.redact(set, "to bob", "-"), None);
    }

    #[test]
    fn what_is_too_much_or_no_pattern_is_refused() {
        let texts = Texts::default();
        assert!(texts.patterns(strings(&["("])).unwrap_err().contains("unclosed group"));
        assert!(texts.patterns(strings(&[r"\w{5000}"])).unwrap_err().contains("size limit"));
        assert!(texts.patterns(vec!["a".to_owned(); 257]).is_err());
        assert!((0..64).all(|i| texts.patterns(vec![i.to_string()]) == Ok(i)));
        assert!(texts.patterns(strings(&["one more"])).is_err());
        assert_eq!(texts.patterns(strings(&["63"])), Ok(63));
    }

    #[test]
    fn a_hash_is_the_same_everywhere() {
        // `printf abc | sha256sum`
        assert_eq!(hash("abc"), 0xba78_16bf_8f01_cfea);
    }

    proptest! {
        #[test]
        fn nothing_is_left_to_redact_afterwards(text in "[a-z0-9@. é]{0,40}") {
            let texts = Texts::default();
            let set = texts.patterns(strings(&[r"\w+@\w+", r"\d{2,}"])).unwrap();
            let redacted = texts.redact(set, &text, "#");
            prop_assert_eq!(redacted.is_some(), !texts.matches(set, &text).is_empty());
            let redacted = redacted.unwrap_or(text);
            prop_assert_eq!(texts.redact(set, &redacted, "#"), None);
        }
    }
}
