//! The drystone binary: a command line over parts that other crates hold.

mod bench;
mod check;
mod cli;
mod demo;
mod log;
mod plugin;
mod policies;
mod replica;
mod serve;
mod survey;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Bench, Cli, Command};

/// Why a command gave up. The text is all that the user sees.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error(transparent)]
    Launch(#[from] config::launch::LaunchError),
    #[error(transparent)]
    Model(#[from] model::error::Error),
    #[error(transparent)]
    Adapters(#[from] adapters::catalogue::CatalogueError),
    #[error(transparent)]
    Text(#[from] engine::text::TextError),
    #[error(transparent)]
    Ranks(#[from] ranks::error::StartError),
    #[error(transparent)]
    Engine(#[from] engine::handle::StartError),
    #[error(transparent)]
    Fault(#[from] contract::step::Fault),
    #[error("cannot listen on {address}: {source}; another address would do")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Policy(#[from] policy::host::StartError),
    #[error(transparent)]
    Kernel(#[from] kernels::error::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Plugin(String),
    #[error(transparent)]
    Pack(#[from] pack::PackError),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: std::path::PathBuf, source: std::io::Error },
    #[error("the demo failed: {0}")]
    Demo(String),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = log::start(cli.log_format).and_then(|()| match cli.command {
        Command::Serve { config } => serve::command(&config),
        Command::Check { config } => check::command(&config),
        Command::Demo(demo) => demo::command(&demo),
        Command::Plugin { what } => plugin::command(&what),
        Command::Bench { what: Bench::Offline(offline) } => bench::command(&offline),
        Command::Bench { what: Bench::Policy(policy) } => bench::policy::command(&policy),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("drystone: {failure}");
            ExitCode::FAILURE
        }
    }
}
