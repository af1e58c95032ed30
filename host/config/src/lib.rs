//! TOML deployments: raw text in, checked settings out.
//!
//! The only crate that reads TOML or the environment. [`raw`] is exactly what the operator typed;
//! [`check`] turns it into [`settings`], which is all that the rest of the host sees.

pub mod cases;
pub mod check;
pub mod components;
pub mod environment;
pub mod keys;
pub mod launch;
pub mod raw;
pub mod settings;

use std::path::Path;

use crate::check::Problem;
use crate::settings::Settings;

/// Why a deployment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or type that is not known; the message shows where.
    #[error("{path}:\n{message}")]
    Parse {
        /// Which file.
        path: String,
        /// Position, key and what was expected.
        message: String,
    },
    /// The text is fine, values are not.
    #[error("{path}:\n{}", lines(.problems))]
    Values {
        /// Which file.
        path: String,
        /// All that is wrong, in the order of the sections.
        problems: Vec<Problem>,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

/// Reads and checks a deployment. Relative paths in it are relative to its folder.
pub fn load(path: &Path) -> Result<Settings, ConfigError> {
    let text = read(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    parse(&text, folder, &path.display().to_string())
}

/// Checks the text of a deployment that came from `name`; relative paths in it start at `folder`.
pub fn parse(text: &str, folder: &Path, name: &str) -> Result<Settings, ConfigError> {
    check::check(typed(text, name)?, folder)
        .map_err(|problems| ConfigError::Values { path: name.to_owned(), problems })
}

fn typed(text: &str, name: &str) -> Result<raw::Deployment, ConfigError> {
    toml::from_str(text)
        .map_err(|error| ConfigError::Parse { path: name.to_owned(), message: error.to_string() })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })
}
