//! An answer whose sequences the engine has taken.

use engine::handle::{Engine, Ticket};

use crate::answer::form::Form;
use crate::answer::head::Head;
use crate::gate::Deadline;
use crate::request::job::Prompt;

/// What both ways of answering start from. Dropping it cancels its sequences.
pub struct Opened {
    /// What every piece repeats.
    pub head: Head,
    /// What to show.
    pub form: Form,
    /// Prompts, in the order of the request.
    pub prompts: Vec<Prompt>,
    /// Choices of each prompt.
    pub n: usize,
    /// One a choice, in the order of their indices.
    pub tickets: Vec<Ticket>,
    /// Knows the texts of tokens.
    pub engine: Engine,
    /// When the answer must be complete.
    pub deadline: Deadline,
}

impl Opened {
    /// The prompt of a choice.
    pub fn prompt(&self, choice: usize) -> &Prompt {
        &self.prompts[choice / self.n]
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }
}
