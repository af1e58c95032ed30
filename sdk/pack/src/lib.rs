//! Builds a plugin's crate into a component: cargo makes a module, and the contract that the SDK
//! left in it makes the module a component.
//!
//! ```no_run
//! let built = pack::build("plugins/redactor".as_ref(), &pack::Options::default())?;
//! std::fs::write("redactor.wasm", &built.component)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cargo;
mod surface;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wit_component::ComponentEncoder;

pub use crate::surface::Surface;

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where cargo keeps its work [default: `plugins` in the target folder of the workspace, so
    /// that a build does not wait for one of the workspace itself].
    pub target_dir: Option<PathBuf>,
    /// Refuse to change `Cargo.lock`.
    pub locked: bool,
}

/// A component and what it is made of.
#[derive(Clone, Debug)]
pub struct Built {
    /// Name of the crate.
    pub name: String,
    /// The component's bytes.
    pub component: Vec<u8>,
    /// SHA-256 of the bytes, in hex.
    pub sha256: String,
    /// What it exports and imports.
    pub surface: Surface,
}

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A program is missing.
    #[error("cannot run `{program}`: {source}; Rust from rustup has it")]
    Start {
        /// Its name.
        program: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The compiler cannot build for the target.
    #[error("cannot build for WebAssembly, for `rustup target add {target}` failed:\n{why}")]
    Target {
        /// The target's name.
        target: &'static str,
        /// What rustup says.
        why: String,
    },
    /// There is no crate, or not one that makes a plugin.
    #[error("{}: {why}", manifest.display())]
    Manifest {
        /// Its manifest.
        manifest: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The crate does not compile. Cargo has said why.
    #[error("the plugin does not compile")]
    Compile,
    /// The module is there and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The module does not keep to the contract.
    #[error("the module is no component: {0}")]
    Component(String),
}

/// Name of the plugin's crate whose `Cargo.toml` is in this folder.
pub fn name(manifest_dir: &Path) -> Result<String, PackError> {
    Ok(cargo::locate(manifest_dir)?.name)
}

/// Builds the crate whose `Cargo.toml` is in this folder.
pub fn build(manifest_dir: &Path, options: &Options) -> Result<Built, PackError> {
    let krate = cargo::locate(manifest_dir)?;
    cargo::ensure_target()?;
    let path = cargo::compile(&krate, options)?;
    let module = std::fs::read(&path).map_err(|source| PackError::Read { path, source })?;
    let component = component(&module)?;
    let surface = Surface::of(&component)?;
    Ok(Built { name: krate.name, sha256: sha256(&component), component, surface })
}

/// The component that a core module describes in its custom sections.
fn component(module: &[u8]) -> Result<Vec<u8>, PackError> {
    let encode = || ComponentEncoder::default().validate(true).module(module)?.encode();
    // The chain of causes, for the first one alone says little.
    encode().map_err(|error| PackError::Component(format!("{error:#}")))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
