//! A plugin that does what no plugin should, on command: it answers every hook, and the tests of
//! the server see to it that nothing worse comes of it than the plugin's failure.
//!
//! The command is the name of the model, for `authorize` the key; `on-chunk` also takes the pending
//! text. Where that is no command, it is `command` of the configuration. With a hook after it, as
//! in `trap.admit`, it means that hook alone. `init` takes `init_command` and `self-test` takes
//! `self_test_command`.

mod command;

use drystone_sdk::host::answer;
use drystone_sdk::prelude::*;

use crate::command::Command;

/// More state than a choice may have.
const HOARD: usize = 5 << 10;

/// What to do when the request does not say.
#[config]
#[derive(Debug, Default)]
#[serde(default)]
pub struct Config {
    command: String,
    init_command: String,
    self_test_command: String,
    hold_back: u32,
}

/// Answers every hook.
#[derive(Debug)]
pub struct Misbehave(Config);

impl Misbehave {
    /// What the request asks for, once all that can be done in any hook has been done.
    fn obey(&self, hook: &str, word: &str) -> Command {
        let command = Command::at(hook, word).or_else(|| Command::at(hook, &self.0.command));
        let command = command.unwrap_or(Command::Behave);
        command.carry_out();
        command
    }
}

#[policy]
impl Policy for Misbehave {
    type Config = Config;

    const HEADERS: &'static [&'static str] = &["x-tenant"];

    fn new(config: Config, _setup: &Setup) -> Result<Self, String> {
        match Command::read(&config.init_command) {
            Some(Command::Fail) => return Err("told to fail".into()),
            Some(command) => command.carry_out(),
            None => {}
        }
        Ok(Self(config))
    }

    fn hold_back(&self) -> u32 {
        self.0.hold_back
    }

    fn self_test(&self) -> Result<(), String> {
        match Command::read(&self.0.self_test_command) {
            Some(Command::Fail) => return Err("told to fail".into()),
            Some(command) => command.carry_out(),
            None => {}
        }
        Ok(())
    }

    fn authorize(&self, caller: &Caller) -> Result<Identity, Denial> {
        let command = self.obey("authorize", caller.key.as_deref().unwrap_or_default());
        command.denial().map_or_else(
            || Ok(Identity { tenant: command.text("acme"), limits: Limits::default() }),
            Err,
        )
    }

    fn on_request(&self, request: &Request) -> RequestVerdict {
        match self.obey("on-request", &request.model) {
            Command::Huge => RequestVerdict::Respond(Command::Huge.text("")),
            Command::Nan => RequestVerdict::Edit(vec![Edit::Temperature(f32::NAN)]),
            Command::UnknownAdapter => RequestVerdict::Edit(vec![Edit::Model("nobody".into())]),
            Command::BadIndex => {
                RequestVerdict::Edit(vec![Edit::SetContent((u32::MAX, "lost".into()))])
            }
            command => command.denial().map_or(RequestVerdict::Pass, RequestVerdict::Refuse),
        }
    }

    fn select_adapter(&self, request: &Request) -> Selection {
        match self.obey("select-adapter", &request.model) {
            Command::UnknownAdapter => Selection::Adapter("nobody".into()),
            Command::Huge => Selection::Adapter(Command::Huge.text("")),
            command => command.denial().map_or(Selection::Named, Selection::Refuse),
        }
    }

    fn resolve_adapter(&self, request: &Request, name: &str) -> Resolution {
        const HOOK: &str = "resolve-adapter";
        let word = if Command::at(HOOK, name).is_some() { name } else { &*request.model };
        let command = self.obey(HOOK, word);
        let load = |path: String| Resolution::Load(Source { path, sha256: None });
        match command {
            Command::Huge => load(command.text("")),
            Command::UnknownAdapter => load("../../outside".into()),
            command => command.denial().map_or(Resolution::NotFound, Resolution::Deny),
        }
    }

    fn admit(&self, request: &Request, _load: &Load) -> AdmitVerdict {
        match self.obey("admit", &request.model) {
            Command::BadIndex => {
                AdmitVerdict::Admit(Admission { priority: i32::MAX, deadline_ms: Some(0) })
            }
            command => command
                .denial()
                .map_or_else(|| AdmitVerdict::Admit(Admission::default()), AdmitVerdict::Shed),
        }
    }

    fn score_replicas(&self, _demand: &Demand, replicas: &[Replica]) -> Vec<f32> {
        match self.obey("score-replicas", "") {
            Command::Nan => vec![f32::NAN; replicas.len()],
            Command::BadIndex => vec![0.0; replicas.len() + 1],
            Command::Huge => vec![0.0; 1 << 18],
            _ => (0u8..).map(f32::from).take(replicas.len()).collect(),
        }
    }

    fn on_chunk(&self, chunk: &Chunk) -> ChunkVerdict {
        const HOOK: &str = "on-chunk";
        let asked = answer::asked().unwrap_or_default();
        if chunk.pending == "who asked?" {
            return ChunkVerdict::Replace(asked.tenant);
        }
        let by_model = Command::at(HOOK, &asked.model).is_some();
        match self.obey(HOOK, if by_model { &asked.model } else { &chunk.pending }) {
            Command::Hoard => {
                answer::set_state(&[0; HOARD]);
                ChunkVerdict::Pass
            }
            Command::Huge => ChunkVerdict::Replace(Command::Huge.text("")),
            Command::HoldForever => ChunkVerdict::Hold,
            Command::BadStatus => {
                ChunkVerdict::Stop(Ending { text: String::new(), reason: "told to".into() })
            }
            _ => ChunkVerdict::Pass,
        }
    }

    fn on_response(&self, request: &Request, _response: &Response) -> Vec<ResponseEdit> {
        match self.obey("on-response", &request.model) {
            Command::Huge => vec![ResponseEdit::SetText((0, Command::Huge.text("")))],
            Command::BadIndex => vec![ResponseEdit::SetText((u32::MAX, "lost".into()))],
            Command::BadHeader => {
                let value = "1\r\nset-cookie: stolen=1".to_owned();
                vec![ResponseEdit::SetHeader(("x-misbehave".into(), value))]
            }
            _ => Vec::new(),
        }
    }

    fn on_complete(&self, request: &Request, _completion: &Completion) {
        self.obey("on-complete", &request.model);
    }
}
