//! Changes to a request: what is legal, and what they make of it.

use std::sync::Arc;

use contract::policy::subject::{Message, Route, Subject};
use contract::policy::verdict::Edit;

use crate::bindings::exports::drystone::policy::on_request as wit;
use crate::check::{name, within};

const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// The texts of an edit.
pub(crate) fn texts(edit: &wit::Edit) -> Vec<&str> {
    match edit {
        wit::Edit::Model(text) | wit::Edit::SetContent((_, text)) | wit::Edit::AddStop(text) => {
            vec![text]
        }
        wit::Edit::InsertMessage((_, message)) => vec![&message.role, &message.content],
        _ => Vec::new(),
    }
}

/// The edits, if each is legal after those before it.
pub(crate) fn checked(edits: Vec<wit::Edit>, subject: &Subject) -> Result<Vec<Edit>, String> {
    let mut shape = Shape { messages: subject.messages.len(), chat: subject.route == Route::Chat };
    edits.into_iter().map(|edit| shape.checked(edit)).collect()
}

/// What the legality of an edit depends on.
struct Shape {
    messages: usize,
    chat: bool,
}

impl Shape {
    fn checked(&mut self, edit: wit::Edit) -> Result<Edit, String> {
        Ok(match edit {
            wit::Edit::Model(model) => Edit::Model(name("a model", model)?),
            wit::Edit::SetContent((index, text)) => {
                self.there(index)?;
                Edit::SetContent(index, text)
            }
            wit::Edit::InsertMessage((index, message)) => self.insert(index, message)?,
            wit::Edit::RemoveMessage(index) => self.remove(index)?,
            wit::Edit::AddStop(text) if text.is_empty() => {
                return Err("a stop text is empty".to_owned());
            }
            wit::Edit::AddStop(text) => Edit::AddStop(text),
            wit::Edit::Seed(seed) => Edit::Seed(seed),
            number => self::number(number)?,
        })
    }

    fn there(&self, index: u32) -> Result<(), String> {
        if (index as usize) < self.messages {
            return Ok(());
        }
        Err(format!("there is no message {index}, there are {}", self.messages))
    }

    fn in_chat(&self) -> Result<(), String> {
        let error = || "messages come and go in chats only".to_owned();
        self.chat.then_some(()).ok_or_else(error)
    }

    fn insert(&mut self, index: u32, message: wit::Message) -> Result<Edit, String> {
        self.in_chat()?;
        if index as usize > self.messages {
            return Err(format!("no message can go before {index} of {}", self.messages));
        }
        if !ROLES.contains(&&*message.role) {
            return Err(format!("{:?} is no role", message.role));
        }
        self.messages += 1;
        let message = Message { role: message.role, content: message.content };
        Ok(Edit::InsertMessage(index, message))
    }

    fn remove(&mut self, index: u32) -> Result<Edit, String> {
        self.in_chat()?;
        self.there(index)?;
        if self.messages == 1 {
            return Err("the last message must stay".to_owned());
        }
        self.messages -= 1;
        Ok(Edit::RemoveMessage(index))
    }
}

/// The edits that are numbers, in the ranges that the API has for callers.
fn number(edit: wit::Edit) -> Result<Edit, String> {
    Ok(match edit {
        wit::Edit::Temperature(x) => Edit::Temperature(within("temperature", x, 0.0..=2.0)?),
        wit::Edit::TopP(x) => Edit::TopP(within("top_p", x, f32::MIN_POSITIVE..=1.0)?),
        wit::Edit::TopK(k) => Edit::TopK(k),
        wit::Edit::MinP(x) => Edit::MinP(within("min_p", x, 0.0..=1.0)?),
        wit::Edit::RepetitionPenalty(x) => {
            let range = f32::MIN_POSITIVE..=2.0;
            Edit::RepetitionPenalty(within("repetition_penalty", x, range)?)
        }
        wit::Edit::PresencePenalty(x) => {
            Edit::PresencePenalty(within("presence_penalty", x, -2.0..=2.0)?)
        }
        wit::Edit::FrequencyPenalty(x) => {
            Edit::FrequencyPenalty(within("frequency_penalty", x, -2.0..=2.0)?)
        }
        wit::Edit::MaxTokens(0) => return Err("max_tokens is 0".to_owned()),
        wit::Edit::MaxTokens(tokens) => Edit::MaxTokens(tokens),
        other => return Err(format!("{other:?} is no number: a bug")),
    })
}

/// What checked edits make of a request, as far as other plugins can see.
pub(crate) fn applied(edits: &[Edit], mut subject: Subject) -> Subject {
    let mut messages = subject.messages.to_vec();
    for edit in edits {
        match edit {
            Edit::Model(model) => subject.model.clone_from(model),
            Edit::MaxTokens(tokens) => subject.max_tokens = Some(*tokens),
            Edit::SetContent(index, text) => messages[*index as usize].content.clone_from(text),
            Edit::InsertMessage(index, message) => {
                messages.insert(*index as usize, message.clone());
            }
            Edit::RemoveMessage(index) => drop(messages.remove(*index as usize)),
            _ => {}
        }
    }
    subject.messages = Arc::from(messages);
    subject
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(route: Route, contents: &[&str]) -> Subject {
        let message =
            |text: &&str| Message { role: "user".to_owned(), content: (*text).to_owned() };
        let messages = contents.iter().map(message).collect();
        Subject { route, messages, ..Subject::default() }
    }

    fn say(text: &str) -> wit::Message {
        wit::Message { role: "system".to_owned(), content: text.to_owned() }
    }

    #[test]
    fn indices_are_those_at_the_time_of_the_edit() {
        let before = subject(Route::Chat, &["a"]);
        let edits = vec![
            wit::Edit::InsertMessage((0, say("s"))),
            wit::Edit::SetContent((1, "b".to_owned())),
            wit::Edit::RemoveMessage(0),
        ];
        let edits = checked(edits, &before).expect("legal");
        let after = applied(&edits, before);
        assert_eq!(after.messages.len(), 1);
        assert_eq!(after.messages[0].content, "b");
    }

    #[test]
    fn no_edit_leaves_the_conversation() {
        let chat = subject(Route::Chat, &["a", "b"]);
        let prompt = subject(Route::Completion, &["a"]);
        let set = |index| wit::Edit::SetContent((index, String::new()));
        let insert = |index| wit::Edit::InsertMessage((index, say("s")));
        let twice = vec![wit::Edit::RemoveMessage(0), wit::Edit::RemoveMessage(0)];
        assert!(checked(vec![set(1), insert(2)], &chat).is_ok());
        for edits in [vec![set(2)], vec![insert(3)], vec![wit::Edit::RemoveMessage(2)], twice] {
            assert!(checked(edits.clone(), &chat).is_err(), "{edits:?}");
        }
        for edit in [insert(0), wit::Edit::RemoveMessage(0), set(1)] {
            assert!(checked(vec![edit.clone()], &prompt).is_err(), "{edit:?}");
        }
    }

    #[test]
    fn settings_stay_in_the_ranges_of_the_api() {
        let wrong = [
            wit::Edit::Temperature(f32::NAN),
            wit::Edit::Temperature(2.5),
            wit::Edit::TopP(0.0),
            wit::Edit::MinP(-0.1),
            wit::Edit::RepetitionPenalty(0.0),
            wit::Edit::PresencePenalty(2.1),
            wit::Edit::FrequencyPenalty(f32::INFINITY),
            wit::Edit::MaxTokens(0),
            wit::Edit::AddStop(String::new()),
            wit::Edit::Model(String::new()),
        ];
        for edit in wrong {
            assert!(checked(vec![edit.clone()], &Subject::default()).is_err(), "{edit:?}");
        }
    }
}
