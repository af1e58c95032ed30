//! One component by itself, for tools that test plugins: what it answers, and what that took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::settings::{Allow, Limits};
use contract::policy::hook::Hook;
use contract::policy::subject::Message;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::background;
use crate::engine;
use crate::failure::Failure;
use crate::guest::{Ambient, Services};
use crate::hooks::score_replicas::table;
use crate::instance::Instance;
use crate::load::{LoadError, load};
use crate::recipe::{Kit, Recipe};

/// Bounds for trials where nothing else is asked for. Counting slows guests down, so they get time.
pub const LIMITS: Limits = Limits {
    cpu: Duration::from_secs(1),
    memory_bytes: 64 << 20,
    output_bytes: 64 << 10,
    host_copy_bytes: 4 << 20,
    concurrency: 1,
};

/// A component that was loaded to be tried.
pub struct Trial {
    recipe: Recipe,
}

/// What one call came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the guest said, as recordings have it.
    pub answer: Value,
    /// Wasm instructions, about; the same for the same input on every machine.
    pub fuel: u64,
    /// The most linear memory that the instance held.
    pub peak_bytes: usize,
    /// Of the call alone, on an engine that counts.
    pub time: Duration,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The guest failed.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// The input is not one of the hook.
    #[error("the input does not fit the hook: {0}")]
    Input(String),
    /// The component does not have the hook.
    #[error("it does not answer {}", .0.name())]
    NoHook(Hook),
    /// The machine could not try.
    #[error("it could not be tried: {0}")]
    Host(#[from] std::io::Error),
}

impl Trial {
    /// Loads `wasm` as a server with this `config`, these grants and limits would.
    pub fn load(
        wasm: &[u8],
        config: &Value,
        allow: &Allow,
        limits: Limits,
    ) -> Result<Self, LoadError> {
        let host = |error: &dyn std::fmt::Display| LoadError::Host(error.to_string());
        let engine = engine::measuring().map_err(|error| host(&error))?;
        let loaded = load(&engine, None, wasm)?;
        loaded.check_grants(allow)?;
        let services = Services::alone("trial", allow);
        let _ = services.headers.set(allow.headers.clone());
        let kit = Kit { services: Arc::new(services), limits, config: config.to_string() };
        let recipe = Recipe::new(&engine, &loaded, &loaded.surface.hooks, allow, kit)?;
        background::wait(recipe.make()).map_err(|error| host(&error))??;
        Ok(Self { recipe })
    }

    /// Asks `hook` with an input as recordings have it, in an instance of its own.
    pub fn call(&self, hook: Hook, input: &Value) -> Result<Outcome, TrialError> {
        background::wait(self.ask(hook, input))?
    }

    async fn ask(&self, hook: Hook, input: &Value) -> Result<Outcome, TrialError> {
        let mut instance = self.recipe.make().await?;
        instance.begin(ambient(input), self.recipe.limits.cpu);
        let fuel = |instance: &Instance| instance.store.get_fuel().unwrap_or_default();
        let (start, before) = (Instant::now(), fuel(&instance));
        let answer = call(&mut instance, hook, input).await?;
        Ok(Outcome {
            answer,
            fuel: before - fuel(&instance),
            peak_bytes: instance.store.data().bounds.peak(),
            time: start.elapsed(),
        })
    }
}

/// Messages of the input, where it has some.
fn ambient(input: &Value) -> Ambient {
    let text = |message: &Value, key| message[key].as_str().unwrap_or_default().to_owned();
    let message = |one: &Value| Message { role: text(one, "role"), content: text(one, "content") };
    let messages = input["messages"].as_array();
    let messages = messages.into_iter().flatten().map(message).collect();
    Ambient { messages, ..Ambient::default() }
}

/// One part of an input.
fn part<T: DeserializeOwned>(input: &Value, key: &str) -> Result<T, TrialError> {
    let wrong = |error| TrialError::Input(format!("{key}: {error}"));
    serde_json::from_value(input[key].clone()).map_err(wrong)
}

async fn call(guest: &mut Instance, hook: Hook, input: &Value) -> Result<Value, TrialError> {
    /// Calls one hook with parts of the input, and puts its answer into JSON.
    macro_rules! call {
        ($hook:ident, $call:ident, $($part:expr),+) => {{
            let Some(exports) = &guest.hooks.$hook else { return Err(TrialError::NoHook(hook)) };
            let answer = exports.$call(&mut guest.store, $($part),+).await;
            Ok(json!(answer.map_err(Failure::from)?))
        }};
    }
    let request = || part(input, "request");
    match hook {
        Hook::Authorize => call!(authorize, call_authorize, &part(input, "caller")?),
        Hook::OnRequest => call!(on_request, call_on_request, &request()?),
        Hook::SelectAdapter => call!(select_adapter, call_select_adapter, &request()?),
        Hook::ResolveAdapter => {
            let name: String = part(input, "name")?;
            call!(resolve_adapter, call_resolve_adapter, &request()?, &name)
        }
        Hook::Admit => call!(admit, call_admit, &request()?, part(input, "load")?),
        Hook::ScoreReplicas => {
            let replicas = table(&part::<Vec<_>>(input, "replicas")?);
            call!(score_replicas, call_score_replicas, part(input, "demand")?, &replicas)
        }
        Hook::OnChunk => call!(on_chunk, call_on_chunk, &part(input, "chunk")?),
        Hook::OnResponse => {
            call!(on_response, call_on_response, &request()?, &part(input, "response")?)
        }
        Hook::OnComplete => {
            call!(on_complete, call_on_complete, &request()?, &part(input, "completion")?)
        }
    }
}
