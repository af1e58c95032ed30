//! Adds up what each tenant used of each adapter, in counters and in the plugin's own state.

#[cfg(test)]
mod tests;

use drystone_sdk::host::{kv, log, metrics};
use drystone_sdk::prelude::*;

/// What stands for the base model, which no adapter answered for.
const BASE: &str = "base";

/// Nothing to configure.
#[derive(Debug)]
pub struct UsageLedger;

#[policy]
impl Policy for UsageLedger {
    type Config = NoConfig;

    fn new(_config: NoConfig, _setup: &Setup) -> Result<Self, String> {
        Ok(Self)
    }

    fn on_complete(&self, request: &Request, completion: &Completion) {
        let adapter = completion.adapter.as_deref().unwrap_or(BASE);
        let usage = &completion.usage;
        let kinds = [
            ("requests", 1),
            ("prompt_tokens", usage.prompt_tokens),
            ("cached_tokens", usage.cached_tokens),
            ("completion_tokens", usage.completion_tokens),
        ];
        for (kind, amount) in kinds.into_iter().filter(|(_, amount)| *amount > 0) {
            count(kind, &request.tenant, adapter, amount);
            keep(kind, &request.tenant, adapter, amount);
        }
    }
}

/// For dashboards.
fn count(kind: &str, tenant: &str, adapter: &str, amount: u32) {
    let labels = [("tenant", tenant), ("adapter", adapter)];
    if let Err(error) = metrics::count(kind, &labels, amount.into()) {
        log::warn(&format!("{kind} of {tenant} not counted: {error:?}"));
    }
}

/// For bills, under `KIND/TENANT/ADAPTER`.
fn keep(kind: &str, tenant: &str, adapter: &str, amount: u32) {
    if let Err(error) = kv::add(&format!("{kind}/{tenant}/{adapter}"), amount.into(), None) {
        log::error(&format!("{amount} {kind} of {tenant} not kept: {error:?}"));
    }
}
