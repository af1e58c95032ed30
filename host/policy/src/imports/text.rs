//! Work on texts at the host's speed.

use crate::bindings::drystone::policy::text;
use crate::guest::Guest;
use crate::state::text::hash;

const TOO_LATE: &str = "sets are made in `init` only";

impl text::Host for Guest {
    fn patterns(&mut self, patterns: Vec<String>) -> Result<u32, String> {
        if !self.starting {
            return Err(TOO_LATE.to_owned());
        }
        self.services.texts.patterns(patterns)
    }

    fn words(&mut self, words: Vec<String>) -> Result<u32, String> {
        if !self.starting {
            return Err(TOO_LATE.to_owned());
        }
        self.services.texts.words(words)
    }

    fn matches(&mut self, set: u32, text: String) -> Vec<u32> {
        self.services.texts.matches(set, &text)
    }

    fn redact(&mut self, set: u32, text: String, replacement: String) -> Option<String> {
        self.services.texts.redact(set, &text, &replacement)
    }

    fn count_tokens(&mut self, text: String) -> u32 {
        self.surroundings().map_or(0, |around| around.count_tokens(&text))
    }

    fn hash(&mut self, text: String) -> u64 {
        hash(&text)
    }
}
