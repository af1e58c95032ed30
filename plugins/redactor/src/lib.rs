//! Takes e-mail addresses, card numbers and API keys out of what goes in and what comes out.

#[cfg(test)]
mod tests;

use drystone_sdk::host::messages;
use drystone_sdk::prelude::*;

/// What is always looked for. No match is longer than [`LONGEST`].
const PATTERNS: &[&str] = &[
    r"\b[A-Za-z0-9._%+-]{1,48}@[A-Za-z0-9.-]{1,40}\.[A-Za-z]{2,6}\b",
    r"\b(?:[0-9]{4}[ -]?){3}[0-9]{1,7}\b",
    r"\b(?:sk|pk|ghp|xox[bp])[-_][A-Za-z0-9_-]{16,80}\b",
];
const LONGEST: u32 = 96;

/// What to look for besides, and what to put in its place.
#[config]
#[derive(Debug)]
pub struct Config {
    /// More regular expressions, in the syntax of Rust's `regex`.
    #[serde(default)]
    patterns: Vec<String>,
    /// Characters that the longest match of those may have [default: 96].
    #[serde(default)]
    longest: Option<u32>,
    /// Takes the place of each match.
    #[serde(default = "redacted")]
    replacement: String,
}

fn redacted() -> String {
    "[redacted]".into()
}

/// The host's set of patterns.
#[derive(Debug)]
pub struct Redactor {
    patterns: PatternSet,
    config: Config,
}

#[policy]
impl Policy for Redactor {
    type Config = Config;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        let extra = config.patterns.iter().map(String::as_str);
        let patterns: Vec<_> = PATTERNS.iter().copied().chain(extra).collect();
        Ok(Self { patterns: setup.patterns(&patterns)?, config })
    }

    /// What could still become a match is held back, and one more: where a word ends shows by what
    /// comes after it.
    fn hold_back(&self) -> u32 {
        self.config.longest.unwrap_or(0).max(LONGEST) + 1
    }

    fn on_request(&self, _request: &Request) -> RequestVerdict {
        if messages::matches(&self.patterns).is_empty() {
            return RequestVerdict::Pass;
        }
        let edit = |(index, message): (u32, Message)| {
            self.redact(&message.content).map(|text| Edit::SetContent((index, text)))
        };
        RequestVerdict::Edit((0..).zip(messages::all()).filter_map(edit).collect())
    }

    /// A match that begins before what is held back is all there. The others wait: they may go on
    /// in the next chunk.
    fn on_chunk(&self, chunk: &Chunk) -> ChunkVerdict {
        let Some(all) = self.redact(&chunk.pending) else { return ChunkVerdict::Pass };
        if chunk.last {
            return ChunkVerdict::Replace(all);
        }
        let (settled, open) = split(&chunk.pending, self.hold_back() as usize);
        let apart = [settled, open].map(|part| self.redact(part).unwrap_or_else(|| part.into()));
        match apart {
            // A match lies across. What comes next moves the border past it.
            [before, after] if before.clone() + &after != all => ChunkVerdict::Hold,
            [before, _] if before == settled => ChunkVerdict::Pass,
            [before, _] => ChunkVerdict::Replace(before + open),
        }
    }

    fn on_response(&self, _request: &Request, response: &Response) -> Vec<ResponseEdit> {
        let edit = |(index, choice): (u32, &Choice)| {
            self.redact(&choice.text).map(|text| ResponseEdit::SetText((index, text)))
        };
        (0..).zip(&response.choices).filter_map(edit).collect()
    }
}

impl Redactor {
    fn redact(&self, text: &str) -> Option<String> {
        self.patterns.redact(text, &self.config.replacement)
    }
}

/// A text without its last characters, and those.
fn split(text: &str, characters: usize) -> (&str, &str) {
    let start = text.char_indices().rev().nth(characters - 1);
    text.split_at(start.map_or(0, |(at, _)| at))
}
