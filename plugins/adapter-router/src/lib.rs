//! Chooses the adapter of a request: the first rule that fits wins, else the caller's own choice.

mod canary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use drystone_sdk::host::{headers, messages};
use drystone_sdk::prelude::*;

/// Headers that rules may look at.
const HEADERS: &[&str] = &["x-adapter-route", "x-user"];

/// The rules, in their order.
#[config]
#[derive(Debug)]
pub struct Config {
    rules: Vec<Rule>,
}

/// All that a rule mentions must fit.
#[config]
#[derive(Debug)]
pub struct Rule {
    /// The adapter to use.
    adapter: String,
    /// Requests of these tenants; empty means all.
    #[serde(default)]
    tenants: Vec<String>,
    /// Requests with these headers; `x-adapter-route` and `x-user` can be named.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Requests with one of these words in a message.
    #[serde(default)]
    words: Vec<String>,
    /// So many in a hundred of those that fit.
    #[serde(default)]
    percent: Option<u8>,
    /// Callers with the same value of this header stay together; without it each request is drawn.
    #[serde(default)]
    sticky_header: Option<String>,
}

/// Rules, and the host's set of each rule's words.
#[derive(Debug)]
pub struct Router(Vec<(Rule, Option<WordSet>)>);

#[policy]
impl Policy for Router {
    type Config = Config;

    const HEADERS: &'static [&'static str] = HEADERS;

    fn new(config: Config, setup: &Setup) -> Result<Self, String> {
        let ready = |rule: Rule| {
            rule.check()?;
            let words = (!rule.words.is_empty()).then(|| setup.words(&rule.words)).transpose()?;
            Ok((rule, words))
        };
        config.rules.into_iter().map(ready).collect::<Result<_, String>>().map(Self)
    }

    fn select_adapter(&self, request: &Request) -> Selection {
        let fits = |(rule, words): &&(Rule, Option<WordSet>)| rule.fits(request, words.as_ref());
        match self.0.iter().find(fits) {
            Some((rule, _)) => Selection::Adapter(rule.adapter.clone()),
            None => Selection::Named,
        }
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        let mut named = self.headers.keys().chain(&self.sticky_header);
        if let Some(unknown) = named.find(|name| !HEADERS.contains(&name.as_str())) {
            return Err(format!("the header `{unknown}` is not one of {HEADERS:?}"));
        }
        match self.percent {
            Some(percent @ 101..) => Err(format!("percent = {percent} is more than all, 100")),
            _ => Ok(()),
        }
    }

    fn fits(&self, request: &Request, words: Option<&WordSet>) -> bool {
        let tenant = self.tenants.is_empty() || self.tenants.contains(&request.tenant);
        tenant
            && self.headers.iter().all(|(name, value)| headers::get(name).as_ref() == Some(value))
            && words.is_none_or(|words| !messages::matches(words).is_empty())
            && self.percent.is_none_or(|percent| self.draw(request) < u64::from(percent))
    }

    /// 0 to 99, the same for the same caller or request and different for different adapters.
    fn draw(&self, request: &Request) -> u64 {
        let sticky = self.sticky_header.as_deref().and_then(headers::get);
        canary::draw(&self.adapter, &request.tenant, sticky.as_deref().unwrap_or(&request.id))
    }
}
