//! `drystone plugin`: the tools of those who write plugins.

mod build;
mod dev;
mod inspect;
mod new;
mod replay;
mod suite;
mod test;

use std::path::Path;

use crate::Failure;
use crate::cli::Plugin;

/// Does what the command line says.
pub fn command(what: &Plugin) -> Result<(), Failure> {
    match what {
        Plugin::New(new) => new::command(new),
        Plugin::Build(build) => build::command(build),
        Plugin::Inspect { file, json } => inspect::command(file, *json),
        Plugin::Test { file, cases } => test::command(file, cases),
        Plugin::Replay(options) => replay::command(options),
        Plugin::Dev(options) => dev::command(options),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| about(file, error))
}

fn about(file: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Plugin(format!("{}: {error}", file.display()))
}
