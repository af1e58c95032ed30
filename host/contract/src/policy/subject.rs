//! What hooks are asked about: a caller, then a request.

use std::sync::Arc;

/// Who is asking, as far as the gateway could tell.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    /// The bearer key, when one was sent.
    pub key: Option<&'a str>,
    /// Which API.
    pub route: Route,
    /// Headers that policies may read.
    pub headers: &'a Headers,
}

/// The tenant that a request is counted and limited under.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tenant(pub String);

/// Which API a request came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Route {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
    /// Nothing is generated.
    #[default]
    Other,
}

impl Route {
    /// All of them, for those who list them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Completion, Self::Other];

    /// The word that configurations use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Other => "other",
        }
    }
}

/// Request headers that policies may read: lower-case names with values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Option<Arc<[(String, String)]>>);

impl Headers {
    /// The value of the header `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut headers = self.0.as_deref().unwrap_or_default().iter();
        headers.find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// One request, as far as it is known when a hook is asked.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Its name in logs and answers.
    pub id: Arc<str>,
    /// Who pays for it.
    pub tenant: Tenant,
    /// The model as the caller wrote it, or as a policy changed it.
    pub model: String,
    /// Which API.
    pub route: Route,
    /// Tokens of all prompts; 0 until they have been counted.
    pub prompt_tokens: u32,
    /// Tokens to generate for each choice at most; `None` when nobody said.
    pub max_tokens: Option<u32>,
    /// Whether the answer is streamed.
    pub streamed: bool,
    /// Headers that policies may read.
    pub headers: Headers,
    /// The conversation; each prompt of `/v1/completions` as one of the user's. Empty where
    /// [`super::Policy::reads_messages`] says that nobody looks.
    pub messages: Arc<[Message]>,
}
