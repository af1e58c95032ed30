//! Who may call, and how much: keys name tenants, and each tenant has a bucket of tokens.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use drystone_sdk::host::{kv, log};
use drystone_sdk::prelude::*;

/// Tokens that a request may generate when it does not say.
const UNSAID: u32 = 256;

/// Keys and tenants.
#[config]
#[derive(Debug)]
pub struct Config {
    /// From the bearer key to the tenant.
    keys: BTreeMap<String, String>,
    /// What each tenant may use.
    tenants: BTreeMap<String, Quota>,
}

/// What a tenant may use. Left out means unlimited.
#[config]
#[derive(Debug)]
pub struct Quota {
    /// Tokens to generate for a request at most.
    #[serde(default)]
    max_tokens: Option<u32>,
    /// Requests at once.
    #[serde(default)]
    concurrency: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    #[serde(default)]
    tokens_per_minute: Option<u32>,
    /// Tokens at once after a rest [default: those of a minute].
    #[serde(default)]
    burst: Option<u32>,
    /// Lower goes first, -100 to 100.
    #[serde(default)]
    priority: i32,
}

/// The table.
#[derive(Debug)]
pub struct TenantQuota(Config);

#[policy]
impl Policy for TenantQuota {
    type Config = Config;

    fn new(config: Config, _setup: &Setup) -> Result<Self, String> {
        match config.keys.values().find(|tenant| !config.tenants.contains_key(*tenant)) {
            Some(tenant) => Err(format!("a key names the tenant `{tenant}`, which has no quota")),
            None => Ok(Self(config)),
        }
    }

    fn authorize(&self, caller: &Caller) -> Result<Identity, Denial> {
        let tenant = caller.key.as_ref().and_then(|key| self.0.keys.get(key));
        let tenant = tenant.ok_or_else(|| Denial::new(401, "invalid_api_key", "Unknown key."))?;
        let quota = &self.0.tenants[tenant];
        let limits = Limits { max_tokens: quota.max_tokens, concurrency: quota.concurrency };
        Ok(Identity { tenant: tenant.clone(), limits })
    }

    fn admit(&self, request: &Request, _load: &Load) -> AdmitVerdict {
        let Some(quota) = self.0.tenants.get(&request.tenant) else {
            return AdmitVerdict::Admit(Admission::default());
        };
        match quota.wait(request) {
            None => AdmitVerdict::Admit(Admission { priority: quota.priority, deadline_ms: None }),
            Some(refused) => AdmitVerdict::Shed(refused),
        }
    }
}

impl Quota {
    /// Takes what the request may use at most, or says why it cannot be had.
    fn wait(&self, request: &Request) -> Option<Denial> {
        let per_minute = self.tokens_per_minute?;
        let asked = request.prompt_tokens.saturating_add(request.max_tokens.unwrap_or(UNSAID));
        let capacity = self.burst.unwrap_or(per_minute);
        if asked > capacity {
            let why = format!("The request may use {asked} tokens; the quota allows {capacity}.");
            return Some(Denial::new(429, "quota_too_small", why));
        }
        let bucket = kv::Bucket { capacity, per_second: per_minute as f32 / 60.0 };
        match kv::take(&format!("tokens/{}", request.tenant), asked, bucket) {
            Ok(kv::Take::Taken) => None,
            Ok(kv::Take::After(wait)) => {
                let seconds = wait.as_millis().div_ceil(1000) as u32;
                let refused = Denial::new(429, "rate_limit_exceeded", "The quota is used up.");
                Some(refused.retry_after(seconds))
            }
            Err(error) => {
                // Bookkeeping that fails must not stop those who pay.
                log::error(&format!("no bucket for {}: {error:?}", request.tenant));
                None
            }
        }
    }
}
