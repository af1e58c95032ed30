//! Files of test cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::raw;
use config::settings::Allow;
use contract::policy::hook::Hook;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{about, read};
use crate::Failure;

/// Parts of an input.
const PARTS: [&str; 12] = [
    "request",
    "headers",
    "messages",
    "caller",
    "load",
    "demand",
    "replicas",
    "chunk",
    "released",
    "state",
    "response",
    "completion",
];

/// What a component needs to start.
#[derive(Debug, Deserialize)]
pub struct Setup {
    /// What it may ask of the host.
    #[serde(default, deserialize_with = "allow")]
    pub allow: Allow,
    /// Its configuration.
    #[serde(default = "empty")]
    pub config: Value,
}

/// One file.
#[derive(Debug, Deserialize)]
pub struct Suite {
    /// What the cases have in common.
    #[serde(flatten)]
    pub setup: Setup,
    /// The cases.
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

/// One question with its answer.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// For people.
    pub name: String,
    /// What is asked.
    #[serde(deserialize_with = "hook")]
    pub hook: Hook,
    /// What matters of the verdict; left out where a hook has none.
    #[serde(default)]
    pub expect: Value,
    /// In place of the file's.
    pub config: Option<Value>,
    /// What it may cost.
    #[serde(default)]
    pub budget: Budget,
    /// Asked with all the rest, by [`PARTS`].
    #[serde(flatten)]
    pub input: BTreeMap<String, Value>,
}

/// What a call may cost.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Instructions.
    pub fuel: Option<u64>,
    /// Memory of the instance.
    pub memory_kib: Option<usize>,
}

impl Setup {
    /// No grants and an empty configuration.
    pub fn none() -> Self {
        Self { allow: Allow::default(), config: empty() }
    }

    /// What `file` says.
    pub fn read(file: &Path) -> Result<Self, Failure> {
        serde_json::from_value(toml(file)?).map_err(|error| about(file, error))
    }
}

impl Suite {
    /// All files that `path` means, by name.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, Failure> {
        let files = if path.is_dir() { files(path)? } else { vec![path.to_owned()] };
        if files.is_empty() {
            return Err(about(path, "there is no file of cases (*.toml)"));
        }
        files.iter().map(|file| Self::read(file)).collect()
    }

    fn read(file: &Path) -> Result<Self, Failure> {
        let suite: Self =
            serde_json::from_value(toml(file)?).map_err(|error| about(file, error))?;
        for case in &suite.cases {
            if let Some(key) = case.input.keys().find(|key| !PARTS.contains(&&***key)) {
                let parts = PARTS.join(", ");
                let message = format!("case {:?} has {key:?}; {parts} would do", case.name);
                return Err(about(file, message));
            }
        }
        Ok(suite)
    }
}

impl Case {
    /// What is asked, as recordings have it.
    pub fn input(&self) -> Value {
        json!(self.input)
    }
}

fn toml(file: &Path) -> Result<Value, Failure> {
    let text = String::from_utf8(read(file)?).map_err(|error| about(file, error))?;
    config::cases::read(&text).map_err(|error| about(file, error))
}

/// The hook of this name.
pub fn hook_named(name: &str) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| hook.name() == name)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(|error| about(folder, error))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    Ok(files)
}

fn allow<'de, D: Deserializer<'de>>(from: D) -> Result<Allow, D::Error> {
    raw::Allow::deserialize(from).map(Into::into)
}

fn hook<'de, D: Deserializer<'de>>(from: D) -> Result<Hook, D::Error> {
    let name = String::deserialize(from)?;
    let unknown = || serde::de::Error::custom(format!("there is no hook {name:?}"));
    hook_named(&name).ok_or_else(unknown)
}

fn empty() -> Value {
    json!({})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_grants_for_all_cases() {
        let suite: Suite = serde_json::from_value(json!({
            "allow": { "text": true, "kv_kib": 4 },
            "case": [{ "name": "a", "hook": "on-request", "request": {}, "expect": "pass",
                "budget": { "fuel": 9 } }],
        }))
        .unwrap();
        assert!(suite.setup.allow.text && suite.setup.allow.kv_bytes == 4096);
        assert_eq!((suite.cases[0].hook, suite.cases[0].budget.fuel), (Hook::OnRequest, Some(9)));
    }

    #[test]
    fn a_hook_that_is_none_is_an_error() {
        let case = json!({ "name": "a", "hook": "on-fire", "expect": 0 });
        let error = serde_json::from_value::<Case>(case).unwrap_err();
        assert!(error.to_string().contains("on-fire"));
    }
}
