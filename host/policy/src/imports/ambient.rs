//! The request under way: its headers, its texts, the answer so far.

use crate::bindings::drystone::policy::{answer, headers, messages, types};
use crate::guest::Guest;

impl types::Host for Guest {}

impl headers::Host for Guest {
    fn header(&mut self, name: String) -> Option<String> {
        let granted = self.services.headers.get().is_some_and(|granted| granted.contains(&name));
        let value = granted.then(|| self.ambient.headers.get(&name)).flatten();
        value.map(str::to_owned)
    }
}

impl messages::Host for Guest {
    fn count(&mut self) -> u32 {
        u32::try_from(self.ambient.messages.len()).unwrap_or(u32::MAX)
    }

    fn get(&mut self, index: u32) -> Option<types::Message> {
        let message = self.ambient.messages.get(index as usize)?;
        Some(types::Message { role: message.role.clone(), content: message.content.clone() })
    }

    fn matches(&mut self, set: u32) -> Vec<u32> {
        let texts = &self.services.texts;
        let messages = self.ambient.messages.iter();
        let mut found: Vec<_> =
            messages.flat_map(|message| texts.matches(set, &message.content)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl answer::Host for Guest {
    fn asked(&mut self) -> Option<types::Request> {
        self.ambient.request.as_deref().cloned()
    }

    fn released(&mut self, bytes: u32) -> String {
        self.ambient.released.last(bytes as usize)
    }

    fn state(&mut self) -> Vec<u8> {
        self.ambient.state.clone()
    }

    /// Too much of it makes the call's answer invalid.
    fn set_state(&mut self, state: Vec<u8>) {
        self.ambient.state = state;
    }
}
