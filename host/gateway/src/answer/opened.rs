//! An answer whose choices are being written.

use std::sync::Arc;

use contract::policy::chunk::Filter;
use engine::text::Text;

use crate::accepted::Accepted;
use crate::answer::form::Form;
use crate::answer::head::Head;
use crate::answer::source::Source;
use crate::gate::Deadline;
use crate::request::job::{Job, Prompt};

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
    pub choices: Vec<Choice>,
    /// Knows the texts of tokens.
    pub text: Arc<Text>,
    /// When the answer must be complete.
    pub deadline: Deadline,
    /// Whose answer it is.
    pub accepted: Accepted,
}

/// One choice, and what its text passes on its way out.
pub struct Choice {
    /// Says it.
    pub source: Source,
    /// A policy looks at it.
    pub filter: Option<Box<dyn Filter>>,
}

impl Opened {
    /// The answer to `job`, whose choices are being written.
    pub fn new(
        accepted: Accepted,
        text: Arc<Text>,
        job: Job,
        choices: Vec<Choice>,
        deadline: Deadline,
    ) -> Self {
        let Job { prompts, n, form, .. } = job;
        let model = accepted.subject().model.clone();
        let head = Head::new(form.shape, &accepted.call().id, model);
        Self { head, form, prompts, n, choices, text, deadline, accepted }
    }

    /// The prompt of a choice.
    pub fn prompt(&self, choice: usize) -> &Prompt {
        &self.prompts[choice / self.n]
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).sum()
    }
}
