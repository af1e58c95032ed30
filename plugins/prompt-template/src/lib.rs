//! Gives each tenant a system prompt and keeps its sampling within bounds.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use drystone_sdk::host::messages;
use drystone_sdk::prelude::*;

/// Templates by tenant.
#[config]
#[derive(Debug)]
pub struct Config {
    /// For tenants that have none of their own.
    #[serde(default)]
    default: Template,
    #[serde(default)]
    tenants: BTreeMap<String, Template>,
}

/// What is done to a request.
#[config]
#[derive(Debug, Default)]
#[serde(default)]
pub struct Template {
    /// Goes before the conversation; `{tenant}` and `{model}` are filled in.
    system: Option<String>,
    /// Whether the caller's own system messages are taken out.
    replace_system: bool,
    /// Tokens to generate at most.
    max_tokens: Option<u32>,
    /// The temperature, whatever the caller asks for.
    temperature: Option<f32>,
    /// The top-p, whatever the caller asks for.
    top_p: Option<f32>,
    /// Texts that end the answer as well.
    stop: Vec<String>,
}

/// The templates.
#[derive(Debug)]
pub struct PromptTemplate(Config);

#[policy]
impl Policy for PromptTemplate {
    type Config = Config;

    fn new(config: Config, _setup: &Setup) -> Result<Self, String> {
        Ok(Self(config))
    }

    fn on_request(&self, request: &Request) -> RequestVerdict {
        let template = self.0.tenants.get(&request.tenant).unwrap_or(&self.0.default);
        let edits: Vec<_> = template.prompt(request).chain(template.sampling(request)).collect();
        match edits.is_empty() {
            true => RequestVerdict::Pass,
            false => RequestVerdict::Edit(edits),
        }
    }
}

impl Template {
    fn prompt(&self, request: &Request) -> impl Iterator<Item = Edit> {
        let chat = request.route == Route::Chat;
        let removed = if chat && self.replace_system { system_messages() } else { Vec::new() };
        let system = self.system.as_ref().filter(|_| chat).map(|text| Message {
            role: "system".into(),
            content: text.replace("{tenant}", &request.tenant).replace("{model}", &request.model),
        });
        // The new message comes first: one must stay. Then the last goes before the first, for
        // indices are those at the time of the edit.
        let shift = u32::from(system.is_some());
        let removals = removed.into_iter().rev().map(move |at| Edit::RemoveMessage(at + shift));
        system.map(|message| Edit::InsertMessage((0, message))).into_iter().chain(removals)
    }

    fn sampling(&self, request: &Request) -> impl Iterator<Item = Edit> {
        let most = self.max_tokens.filter(|most| request.max_tokens.is_none_or(|n| n > *most));
        let edits = [
            most.map(Edit::MaxTokens),
            self.temperature.map(Edit::Temperature),
            self.top_p.map(Edit::TopP),
        ];
        edits.into_iter().flatten().chain(self.stop.iter().cloned().map(Edit::AddStop))
    }
}

/// Where the caller's own system messages are.
fn system_messages() -> Vec<u32> {
    let all = (0..).zip(messages::all());
    all.filter(|(_, message)| message.role == "system").map(|(at, _)| at).collect()
}
