//! A request whose prompts are text still, so that policies can read and change them.

use std::sync::Arc;

use contract::policy::subject::Message;
use engine::text::Text;
use serde_json::Value;

use crate::answer::form::Form;
use crate::error::ApiError;
use crate::request::chat::Conversation;
use crate::request::completion::Given;
use crate::request::job::{Job, Manner, Prompt};

/// A request as its body has it.
pub struct Draft {
    /// What to go on from.
    pub input: Input,
    /// Choices of each prompt.
    pub n: usize,
    /// How each choice goes on.
    pub manner: Manner,
    /// Logprobs of the output: how many of the likeliest tokens to name.
    pub logprobs: Option<u32>,
    /// Logprobs of the prompt, likewise.
    pub prompt_logprobs: Option<u32>,
    /// What the answer shows, and how it travels.
    pub form: Form,
}

/// What a request goes on from.
pub enum Input {
    /// A conversation, which is one prompt once it is rendered.
    Chat(Box<Conversation>),
    /// Prompts; never none.
    Text {
        /// In the order of the request.
        prompts: Vec<Given>,
        /// The answer begins with the prompt.
        echo: bool,
    },
}

impl Draft {
    /// Prompts that it has.
    pub fn prompts(&self) -> usize {
        match &self.input {
            Input::Chat(_) => 1,
            Input::Text { prompts, .. } => prompts.len(),
        }
    }

    /// The texts as policies read them.
    pub fn messages(&self, text: &Text) -> Arc<[Message]> {
        match &self.input {
            Input::Chat(conversation) => conversation.chat.messages.iter().map(message).collect(),
            Input::Text { prompts, .. } => {
                let user = |content| Message { role: "user".to_owned(), content };
                prompts.iter().map(|given| user(given.text(text).into_owned())).collect()
            }
        }
    }

    /// Tokenizes the prompts.
    pub fn encode(self, text: &Text) -> Result<Job, ApiError> {
        let Self { input, n, manner, logprobs, prompt_logprobs, form } = self;
        let prompts = match input {
            Input::Chat(conversation) => vec![conversation.encode(text)?],
            Input::Text { prompts, echo } => {
                let prompts = prompts.into_iter().map(|given| given.encode(text, echo));
                prompts.collect::<Result<_, _>>()?
            }
        };
        Ok(Job { prompts, n, manner, logprobs, prompt_logprobs, form })
    }

    /// A job that is done already: its prompts have no tokens.
    pub fn done(self) -> Job {
        let empty = || Prompt { tokens: Arc::new([]), echo: None };
        let prompts = (0..self.prompts()).map(|_| empty()).collect();
        let Self { n, manner, logprobs, prompt_logprobs, form, .. } = self;
        Job { prompts, n, manner, logprobs, prompt_logprobs, form }
    }

    /// A field of the request that would show what a filter takes out of the answer.
    pub fn leak(&self) -> Option<&'static str> {
        let Form { logprobs, prompt_logprobs, token_ids, .. } = self.form;
        let leaks = [
            (logprobs, "logprobs"),
            (prompt_logprobs, "prompt_logprobs"),
            (token_ids, "return_token_ids"),
        ];
        leaks.into_iter().find_map(|(set, field)| set.then_some(field))
    }
}

fn message(message: &Value) -> Message {
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    Message { role: text("role"), content: text("content") }
}
