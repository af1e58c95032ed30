//! One component by itself, for tools: loaded as a server loads it, asked one hook at a time, and
//! measured.

use std::sync::Arc;
use std::time::Duration;

use config::settings::{Allow, Limits};
use contract::policy::hook::Hook;
use serde_json::Value;
use wasmtime::Engine;

use crate::background::wait;
use crate::engine;
use crate::failure::Failure;
use crate::generation::first;
use crate::guest::{Ambient, Services};
use crate::hooks::admit::Admit;
use crate::hooks::authorize::Authorize;
use crate::hooks::on_chunk::OnChunk;
use crate::hooks::on_complete::OnComplete;
use crate::hooks::on_request::OnRequest;
use crate::hooks::on_response::OnResponse;
use crate::hooks::resolve_adapter::ResolveAdapter;
use crate::hooks::score_replicas::{ScoreReplicas, table};
use crate::hooks::select_adapter::SelectAdapter;
use crate::instance::Instance;
use crate::json::{self, ambient, headers, part, subject};
use crate::load::{LoadError, Loaded, load};
use crate::question::{Question, request};
use crate::recipe::{Kit, Recipe};

/// Bounds for tools. Counting slows guests down, so they get time.
pub const LIMITS: Limits = Limits {
    cpu: Duration::from_secs(1),
    memory_bytes: 64 << 20,
    output_bytes: 64 << 10,
    host_copy_bytes: 4 << 20,
    concurrency: 1,
};

/// A compiled component.
pub struct Harness {
    engine: Engine,
    loaded: Loaded,
}

/// A component that has its configuration and its grants. What it keeps stays from call to call,
/// as on a server; every call has an instance of its own.
pub struct Started(Recipe);

/// What came of one call.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the guest said, as JSON, or why it said nothing that counts.
    pub verdict: Result<Value, Failure>,
    /// WebAssembly instructions that it took.
    pub fuel: u64,
    /// The most that its memories held, its start included.
    pub memory_bytes: usize,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The input is not one of this hook.
    #[error("{0}")]
    Input(String),
    /// The guest did not start.
    #[error(transparent)]
    Start(#[from] Failure),
    /// The host could not try.
    #[error("{0}")]
    Host(#[from] std::io::Error),
}

impl Harness {
    /// Compiles `wasm` so that its instructions are counted.
    pub fn new(wasm: &[u8]) -> Result<Self, LoadError> {
        let engine = engine::measuring().map_err(|error| LoadError::Host(error.to_string()))?;
        let loaded = load(&engine, None, wasm)?;
        Ok(Self { engine, loaded })
    }

    /// Hooks that it exports.
    pub fn hooks(&self) -> &[Hook] {
        &self.loaded.surface.hooks
    }

    /// Checks what it imports, configures it and has it test itself.
    pub fn start(&self, allow: &Allow, config: &Value) -> Result<Started, LoadError> {
        self.loaded.check_grants(allow)?;
        let services = Arc::new(Services::alone("trial", allow));
        let kit = Kit { services, limits: LIMITS, config: config.to_string() };
        let recipe = Recipe::new(&self.engine, &self.loaded, self.hooks(), allow, kit)?;
        let started = wait(first(&recipe, &allow.headers));
        started.map_err(|error| LoadError::Host(error.to_string()))??;
        Ok(Started(recipe))
    }
}

impl Started {
    /// Asks `hook` about `input`, which has the form that recordings have.
    pub fn ask(&self, hook: Hook, input: &Value) -> Result<Run, AskError> {
        wait(self.question(hook, input))?
    }

    async fn question(&self, hook: Hook, input: &Value) -> Result<Run, AskError> {
        let wrong = AskError::Input;
        let about = || part(input, "request").map_err(wrong);
        let ambient = ambient(input).map_err(wrong)?;
        /// A part of the input by its name.
        macro_rules! part {
            ($name:ident) => {
                part(input, stringify!($name)).map_err(wrong)?
            };
        }
        match hook {
            Hook::Authorize => {
                let headers = headers(input).map_err(wrong)?;
                self.put(&Authorize { caller: part!(caller), headers }).await
            }
            Hook::OnRequest => {
                let subject = subject(input).map_err(wrong)?;
                self.put(&OnRequest { request: request(&subject), subject }).await
            }
            Hook::SelectAdapter => {
                self.put(&SelectAdapter { request: about()?, ambient, served: None }).await
            }
            Hook::ResolveAdapter => {
                let name = json::name(input).map_err(wrong)?;
                self.put(&ResolveAdapter { request: about()?, name, ambient }).await
            }
            Hook::Admit => {
                let load = part!(load);
                self.put(&Admit { request: about()?, load, ambient }).await
            }
            Hook::ScoreReplicas => {
                let rows: Vec<_> = part!(replicas);
                let (demand, replicas) = (part!(demand), table(&rows));
                self.put(&ScoreReplicas { demand, replicas, ambient }).await
            }
            Hook::OnChunk => {
                let ambient = Ambient { request: Some(Arc::new(about()?)), ..ambient };
                self.put(&OnChunk { chunk: part!(chunk), ambient: &ambient }).await
            }
            Hook::OnResponse => {
                let response = part!(response);
                self.put(&OnResponse { request: about()?, response, ambient }).await
            }
            Hook::OnComplete => {
                let completion = part!(completion);
                self.put(&OnComplete { request: about()?, completion, ambient }).await
            }
        }
    }

    async fn put<Q: Question>(&self, question: &Q) -> Result<Run, AskError> {
        let mut instance = self.0.make().await?;
        instance.begin(question.ambient(), LIMITS.cpu);
        let fuel = |instance: &Instance| instance.store.get_fuel().unwrap_or_default();
        let before = fuel(&instance);
        let answer = self.0.within(LIMITS.cpu, || question.ask(&mut instance)).await;
        let used = before - fuel(&instance);
        let memory_bytes = instance.store.data().bounds.peak();
        let missing = || AskError::Input(format!("it does not export {}", Q::HOOK.name()));
        let verdict = match answer {
            Ok(answer) => judged(question, answer.ok_or_else(missing)?)?,
            Err(failure) => Err(failure),
        };
        Ok(Run { verdict, fuel: used, memory_bytes })
    }
}

/// An answer as JSON, if a server would take it.
fn judged<Q: Question>(
    question: &Q,
    answer: Q::Answer,
) -> Result<Result<Value, Failure>, AskError> {
    let verdict = json::verdict(Q::HOOK, &answer);
    let verdict = verdict.map_err(|error| AskError::Input(error.to_string()))?;
    let checked = question.check(answer, &LIMITS);
    Ok(checked.map(|_| verdict).map_err(Failure::Invalid))
}
