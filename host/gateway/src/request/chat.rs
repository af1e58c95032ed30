//! The body of `POST /v1/chat/completions`, and the messages that `/tokenize` takes too.

use engine::text::{ChatPrompt, Text};
use serde_json::{Map, Value};

use crate::answer::form::{Form, Shape, stream};
use crate::error::ApiError;
use crate::request::draft::{Draft, Input};
use crate::request::fields::Fields;
use crate::request::job::{LOGPROBS_MAX, Manner, Prompt, choices, logprobs};

type Message = Map<String, Value>;

/// Messages, and how they become a prompt.
pub struct Conversation {
    /// The messages, and how the chat template is to show them.
    pub chat: ChatPrompt,
    /// The tokenizer adds special tokens to what the template wrote.
    add_special: bool,
    /// The answer begins with the last message when it goes on in its role.
    echo: bool,
}

impl Conversation {
    fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let add_special = fields.flag("add_special_tokens")?;
        let echo = fields.flag("echo")?;
        Ok(Self { chat: conversation(fields)?, add_special, echo })
    }

    /// Renders and tokenizes it.
    pub fn encode(self, text: &Text) -> Result<Prompt, ApiError> {
        let tokens = encode(text, &self.chat, self.add_special)?.into();
        let echo = self.echo.then(|| echo(&self.chat));
        Ok(Prompt { tokens, echo })
    }
}

/// Reads a chat request.
pub fn read(fields: &Fields<'_>, text: &Text) -> Result<Draft, ApiError> {
    let manner = Manner::read(fields, text, None)?;
    let stream = stream(fields)?;
    let logprobs = top_logprobs(fields)?;
    let prompt_logprobs = prompt_logprobs(fields, stream.is_some())?;
    let form = Form {
        shape: Shape::Chat,
        stream,
        token_ids: fields.flag("return_token_ids")?,
        logprobs: logprobs.is_some(),
        prompt_logprobs: prompt_logprobs.is_some(),
    };
    let n = choices(fields, 1)?;
    let input = Input::Chat(Box::new(Conversation::read(fields)?));
    Ok(Draft { input, n, manner, logprobs, prompt_logprobs, form })
}

/// Tokens of a rendered conversation.
pub fn encode(text: &Text, chat: &ChatPrompt, add_special: bool) -> Result<Vec<u32>, ApiError> {
    let rendered = text.chat(chat).map_err(|error| invalid_messages(error.to_string()))?;
    text.encode(&rendered, add_special).map_err(|error| invalid_messages(error.to_string()))
}

/// The messages and how the chat template is to show them.
pub fn conversation(fields: &Fields<'_>) -> Result<ChatPrompt, ApiError> {
    let continue_final_message = fields.flag("continue_final_message")?;
    let add_generation_prompt = fields.switch("add_generation_prompt")?;
    if continue_final_message && add_generation_prompt == Some(true) {
        let wanted = "false when `add_generation_prompt` is true";
        return Err(ApiError::invalid("continue_final_message", "true", wanted));
    }
    let wanted = "an object of variables for the chat template";
    let kwargs = fields.get("chat_template_kwargs", wanted, |_| true)?.unwrap_or_default();
    Ok(ChatPrompt {
        messages: messages(fields)?,
        tools: None,
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        chat_template: fields.get("chat_template", "a chat template", |_| true)?,
        kwargs,
    })
}

fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let wanted = "a list of at least one message, each an object with a `role`";
    let role = |message: &Message| message.get("role").is_some_and(Value::is_string);
    let fits = |messages: &Vec<Message>| !messages.is_empty() && messages.iter().all(role);
    let messages: Option<Vec<Message>> = fields.get("messages", wanted, fits)?;
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "absent", wanted))?;
    messages.into_iter().enumerate().map(|(at, message)| flat(at, message)).collect()
}

/// A message whose content is one text: chat templates of text models know no parts.
fn flat(at: usize, mut message: Message) -> Result<Value, ApiError> {
    if let Some(Value::Array(parts)) = message.get("content") {
        let texts: Result<Vec<&str>, _> = parts.iter().map(|part| text_part(at, part)).collect();
        let content = texts?.join("\n");
        message.insert("content".to_owned(), content.into());
    }
    match message.get("content") {
        Some(Value::String(_) | Value::Null) | None => Ok(message.into()),
        Some(_) => Err(invalid_messages(format!("`content` of message {at} is no text"))),
    }
}

fn text_part(at: usize, part: &Value) -> Result<&str, ApiError> {
    part["text"].as_str().filter(|_| part["type"] == "text").ok_or_else(|| {
        let kind = &part["type"];
        invalid_messages(format!("message {at} has a part of type {kind}; this model takes text"))
    })
}

/// What an echoed answer begins with: the last message, when the answer goes on in its role.
fn echo(chat: &ChatPrompt) -> String {
    let Some(last) = chat.messages.last() else { return String::new() };
    let same_role = !chat.add_generation_prompt || last["role"] == "assistant";
    let content = last["content"].as_str().filter(|_| same_role);
    content.unwrap_or_default().to_owned()
}

/// `logprobs` switches logprobs on, `top_logprobs` says how many tokens to name.
fn top_logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let wanted = format!("a whole number from 0 to {LOGPROBS_MAX}, with `logprobs` true");
    let on = fields.flag("logprobs")?;
    let fits = |&top: &u32| top <= LOGPROBS_MAX && (on || top == 0);
    let top = fields.get("top_logprobs", &wanted, fits)?;
    Ok(on.then(|| top.unwrap_or(0)))
}

/// Logprobs of the prompt, which come whole or not at all.
pub fn prompt_logprobs(fields: &Fields<'_>, streamed: bool) -> Result<Option<u32>, ApiError> {
    match logprobs(fields, "prompt_logprobs")? {
        Some(_) if streamed => {
            let wanted = "absent when `stream` is true";
            Err(ApiError::invalid("prompt_logprobs", "set", wanted))
        }
        count => Ok(count),
    }
}

fn invalid_messages(message: String) -> ApiError {
    ApiError::Invalid { param: "messages", message }
}
