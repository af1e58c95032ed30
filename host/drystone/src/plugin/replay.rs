//! `drystone plugin replay`: what two components say to what a server recorded.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use contract::policy::hook::Hook;
use policy::harness::{AskError, Harness, Started};
use policy::json::{agree, builtin, unredacted};
use serde::Deserialize;
use serde_json::{Value, json};

use super::suite::{Setup, hook_named};
use super::test::short;
use super::{about, read};
use crate::Failure;
use crate::cli::Replay;

/// Asks both sides every recorded call and prints where they differ.
pub fn command(options: &Replay) -> Result<(), Failure> {
    let setup = options.setup.as_deref().map(Setup::read).transpose()?.unwrap_or_else(Setup::none);
    let (old, new) = (Side::start(&options.old, &setup)?, Side::start(&options.new, &setup)?);
    let file = File::open(&options.recording).map_err(|error| about(&options.recording, error))?;
    let mut tally = Tally { show: options.show, ..Tally::default() };
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let wrong = |error: &dyn std::fmt::Display| {
            about(&options.recording, format!("line {}: {error}", number + 1))
        };
        let line = line.map_err(|error| wrong(&error))?;
        let call: Call = serde_json::from_str(&line).map_err(|error| wrong(&error))?;
        tally.compare(number + 1, call, &old, &new).map_err(|error| wrong(&error))?;
    }
    tally.print();
    Ok(())
}

/// One line of a recording.
#[derive(Debug, Deserialize)]
struct Call {
    hook: String,
    #[serde(default)]
    redacted: bool,
    input: Value,
}

/// Who is asked.
enum Side {
    Builtin,
    Plugin { started: Box<Started>, hooks: Vec<Hook> },
}

impl Side {
    fn start(file: &Path, setup: &Setup) -> Result<Self, Failure> {
        if file == Path::new("builtin") {
            return Ok(Self::Builtin);
        }
        let wrong = |error| about(file, error);
        let harness = Harness::new(&read(file)?).map_err(wrong)?;
        let started = harness.start(&setup.allow, &setup.config).map_err(wrong)?;
        Ok(Self::Plugin { started: Box::new(started), hooks: harness.hooks().to_vec() })
    }

    /// `None` where it has no answer: it lacks the hook, or the answer depends on a deployment.
    fn ask(&self, hook: Hook, input: &Value) -> Result<Option<Value>, AskError> {
        match self {
            Self::Builtin => Ok(builtin(hook, input)),
            Self::Plugin { hooks, .. } if !hooks.contains(&hook) => Ok(None),
            Self::Plugin { started, .. } => {
                let verdict = started.ask(hook, input)?.verdict;
                Ok(Some(verdict.unwrap_or_else(|failure| json!({ "failure": failure.kind() }))))
            }
        }
    }
}

/// What came of the calls so far.
#[derive(Debug, Default)]
struct Tally {
    show: usize,
    same: usize,
    different: usize,
    skipped: usize,
    redacted: usize,
}

impl Tally {
    fn compare(&mut self, line: usize, call: Call, old: &Side, new: &Side) -> Result<(), AskError> {
        let unknown = || AskError::Input(format!("there is no hook {:?}", call.hook));
        let hook = hook_named(&call.hook).ok_or_else(unknown)?;
        let input = if call.redacted { unredacted(call.input) } else { call.input };
        self.redacted += usize::from(call.redacted);
        match (old.ask(hook, &input)?, new.ask(hook, &input)?) {
            (Some(old), Some(new)) if agree(hook, &old, &new) => self.same += 1,
            (Some(old), Some(new)) => self.differ(line, hook, &old, &new),
            _ => self.skipped += 1,
        }
        Ok(())
    }

    fn differ(&mut self, line: usize, hook: Hook, old: &Value, new: &Value) {
        self.different += 1;
        if self.different <= self.show {
            println!("line {line}, {}:\n  old {}\n  new {}", hook.name(), short(old), short(new));
        }
    }

    fn print(&self) {
        let Self { same, different, skipped, redacted, .. } = self;
        let all = same + different + skipped;
        println!("{all} calls: {same} the same, {different} different, {skipped} not compared");
        if *redacted > 0 {
            println!(
                "{redacted} of them are redacted: their texts are hashes, so that verdicts which \
                 depend on texts say little"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_what_came_of_them() {
        let mut tally = Tally::default();
        let call = |hook: &str| Call { hook: hook.to_owned(), redacted: true, input: json!({}) };
        let mut ask = |hook| tally.compare(1, call(hook), &Side::Builtin, &Side::Builtin);
        ask("on-request").unwrap();
        ask("authorize").unwrap();
        assert!(ask("on-fire").is_err());
        assert_eq!((tally.same, tally.skipped, tally.redacted), (1, 1, 2));
    }
}
