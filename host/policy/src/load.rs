//! From bytes to a component that may be used: compiled, and asking only for what is granted.

use std::path::PathBuf;

use config::settings::Allow;
use contract::policy::hook::Hook;
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::cache::Cache;
use crate::failure::Failure;
use crate::grants;
use crate::surface::{Surface, VERSION};

pub use crate::inspect::{Inspection, inspect};

/// Why a component cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("{}: {error}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is not the file that the deployment names.
    #[error("its SHA-256 is {found}, and the deployment pins {expected}")]
    Digest {
        /// What `source.sha256` says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Somebody compiled it already. Running such a file means to trust it wholly.
    #[error("it is compiled native code; give the .wasm component it was made from")]
    Precompiled,
    /// It is something else.
    #[error("it is not WebAssembly: it begins with {0:?}")]
    NotWasm(String),
    /// It is WebAssembly of the kind below components.
    #[error(
        "it is a core module; make a component of it, for example with `drystone plugin build`"
    )]
    CoreModule,
    /// The compiler refused it.
    #[error("it does not compile: {0}")]
    Compile(String),
    /// It speaks another version of the interfaces.
    #[error("it uses {interface} of drystone:policy@{found}, this server speaks {VERSION}")]
    WitVersion {
        /// The interface.
        interface: String,
        /// Its version there.
        found: String,
    },
    /// It imports what no plugin may have.
    #[error("it imports {0}, which this server does not have")]
    Unknown(String),
    /// It imports what this one may not have.
    #[error("it imports {import}, which is not granted; add allow = {{ {remedy} }}")]
    NotGranted {
        /// The interface.
        import: String,
        /// What to add.
        remedy: &'static str,
    },
    /// It exports no `plugin` interface.
    #[error("it is no policy: it does not export drystone:policy/plugin")]
    NoPlugin,
    /// It exports no hook.
    #[error("it exports no hook")]
    NoHooks,
    /// The deployment wants a hook that it lacks.
    #[error("it does not export {}; it exports {exported}", wanted.name())]
    HookMissing {
        /// The hook.
        wanted: Hook,
        /// What is there.
        exported: String,
    },
    /// Its functions have other types than the interfaces say.
    #[error("its types are not those of drystone:policy@{VERSION}: {0}")]
    Types(String),
    /// It failed while it started.
    #[error("{0}")]
    Start(#[from] Failure),
    /// It refused its configuration.
    #[error("it refuses its configuration: {0}")]
    Config(String),
    /// What it says about its configuration cannot be used.
    #[error("the schema of its configuration is no JSON Schema that can be used: {0}")]
    Schema(String),
    /// It found itself wanting.
    #[error("its self-test failed: {0}")]
    SelfTest(String),
    /// The server could not try.
    #[error("it could not be loaded: {0}")]
    Host(String),
}

/// A component and what is known of it before it runs.
pub(crate) struct Loaded {
    pub(crate) component: Component,
    pub(crate) surface: Surface,
    pub(crate) sha256: String,
}

/// Compiles `wasm`, or takes it from the cache.
pub(crate) fn load(
    engine: &Engine,
    cache: Option<&Cache>,
    wasm: &[u8],
) -> Result<Loaded, LoadError> {
    check_kind(wasm)?;
    let component = match cache.and_then(|cache| cache.get(engine, wasm)) {
        Some(component) => component,
        None => compile(engine, cache, wasm)?,
    };
    let surface = Surface::of(&component, engine)?;
    Ok(Loaded { component, surface, sha256: hex(&Sha256::digest(wasm)) })
}

fn compile(engine: &Engine, cache: Option<&Cache>, wasm: &[u8]) -> Result<Component, LoadError> {
    let component = Component::from_binary(engine, wasm)
        .map_err(|error| LoadError::Compile(format!("{error:#}")))?;
    if let Some(cache) = cache {
        cache.put(engine, wasm, &component);
    }
    Ok(component)
}

fn check_kind(wasm: &[u8]) -> Result<(), LoadError> {
    const MAGIC: &[u8] = b"\0asm";
    const SHOWN: usize = 8;
    if Engine::detect_precompiled(wasm).is_some() {
        return Err(LoadError::Precompiled);
    }
    match wasm.strip_prefix(MAGIC) {
        // Version 1 in the layer of modules; components are in layer 1.
        Some([1, 0, 0, 0, ..]) => Err(LoadError::CoreModule),
        Some(_) => Ok(()),
        None => {
            let start = String::from_utf8_lossy(&wasm[..wasm.len().min(SHOWN)]);
            Err(LoadError::NotWasm(start.into_owned()))
        }
    }
}

impl Loaded {
    /// Refuses another file than the one that is pinned.
    pub(crate) fn check_pin(&self, pinned: Option<&str>) -> Result<(), LoadError> {
        match pinned {
            Some(expected) if expected != self.sha256 => {
                Err(LoadError::Digest { expected: expected.to_owned(), found: self.sha256.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what imports more than `allow` grants.
    pub(crate) fn check_grants(&self, allow: &Allow) -> Result<(), LoadError> {
        self.surface.imports.iter().try_for_each(|import| grants::check(import, allow))?;
        if self.surface.wasi && !allow.wasi {
            return Err(LoadError::NotGranted { import: "wasi".to_owned(), remedy: "wasi = true" });
        }
        Ok(())
    }

    /// The hooks to ask it: those `wanted`, or all.
    pub(crate) fn hooks(&self, wanted: Option<&[Hook]>) -> Result<Vec<Hook>, LoadError> {
        let exported = &self.surface.hooks;
        let Some(wanted) = wanted else { return Ok(exported.clone()) };
        match wanted.iter().find(|hook| !exported.contains(hook)) {
            None => Ok(wanted.to_vec()),
            Some(&wanted) => {
                let names: Vec<_> = exported.iter().map(|hook| hook.name()).collect();
                Err(LoadError::HookMissing { wanted, exported: names.join(", ") })
            }
        }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
