//! Plugins as operators see and change them while the server runs.

use std::path::PathBuf;

use crate::policy::asked::Asked;

/// One plugin.
#[derive(Clone, Debug, Default)]
pub struct PluginStatus {
    /// Its name in the deployment.
    pub name: String,
    /// What its description says.
    pub version: String,
    /// SHA-256 of the component, in hex.
    pub sha256: String,
    /// Hooks that it answers.
    pub hooks: Vec<&'static str>,
    /// `enforce`, `shadow` or `disabled`.
    pub mode: &'static str,
    /// Counts up with every swap, from 1.
    pub generation: u64,
    /// There is an older one to go back to.
    pub can_roll_back: bool,
    /// Set aside after too many failures.
    pub quarantined: bool,
    /// Why the last replacement was refused, until one succeeds.
    pub last_error: Option<String>,
}

/// Where a new component comes from.
#[derive(Clone, Debug)]
pub enum Replacement {
    /// Sent by the operator.
    Bytes(Vec<u8>),
    /// A file below `policy.root`.
    Path(PathBuf),
}

/// Why a plugin stays as it was. For the operator.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeployError {
    /// No such plugin.
    #[error("there is no plugin {0:?} in this deployment")]
    Unknown(String),
    /// The new component cannot be used.
    #[error("{0}")]
    Refused(String),
    /// There is nothing to go back to.
    #[error("plugin {0:?} has no older generation to go back to")]
    NoOlder(String),
}

/// The plugins of a server.
pub trait Plugins: Send + Sync {
    /// All of them, in the order of the deployment.
    fn list(&self) -> Vec<PluginStatus>;
    /// Compiles, checks, initialises and self-tests a new component, then swaps it in.
    fn replace<'a>(
        &'a self,
        name: &'a str,
        with: Replacement,
    ) -> Asked<'a, Result<PluginStatus, DeployError>>;
    /// Swaps the generation before the present one in.
    fn roll_back(&self, name: &str) -> Result<PluginStatus, DeployError>;
}
