//! Counts what an answer takes, and notes it whichever way the answer ends.

use contract::policy::completion::Completion;

use crate::accepted::Accepted;
use crate::answer::opened::Opened;
use crate::answer::source::News;
use crate::answer::usage::Usage;

/// The usage of one answer. Dropping it notes what was used so far.
pub struct Tally {
    /// So far.
    pub usage: Usage,
    accepted: Accepted,
    n: usize,
    timed: bool,
}

impl Tally {
    /// Nothing but the prompts of `opened`.
    pub fn new(opened: &Opened) -> Self {
        let usage = Usage { prompt: opened.prompt_tokens(), ..Usage::default() };
        Self { usage, accepted: opened.accepted.clone(), n: opened.n, timed: false }
    }

    /// Counts news of a choice; `first` of it.
    pub fn count(&mut self, choice: usize, first: bool, news: &News) {
        self.usage.completion += news.tokens.len();
        // Only the first choice of a prompt tells of the cache as it was.
        if first && choice.is_multiple_of(self.n) {
            self.usage.cached += news.cached_tokens as usize;
        }
        if !self.timed && !news.tokens.is_empty() {
            self.timed = true;
            self.accepted.first_token();
        }
    }

    /// Notes how a choice ended, if `news` say so and it is the first.
    pub fn ended(&self, choice: usize, news: &News) {
        if let (0, Some(finish)) = (choice, &news.finish) {
            self.accepted.ended(finish.end);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let usage = self.usage.told();
        self.accepted.note(|completion: &mut Completion| completion.usage = usage);
    }
}
