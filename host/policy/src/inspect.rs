//! What a component is, without a server.

use std::sync::Arc;

use contract::policy::hook::Hook;
use wasmtime::Engine;

use crate::background;
use crate::engine;
use crate::grants;
use crate::guest::Services;
use crate::harness::LIMITS;
use crate::instance::Instance;
use crate::load::{LoadError, Loaded, load};
use crate::recipe::{Kit, Recipe};
use crate::surface::VERSION;

/// What a component is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Inspection {
    /// Its own name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// JSON Schema of its configuration; empty when it has none.
    pub config_schema: String,
    /// Request headers that it wants to read.
    pub headers: Vec<String>,
    /// Hooks that it exports.
    pub hooks: Vec<&'static str>,
    /// Interfaces of the host that it imports, which is what it must be allowed.
    pub imports: Vec<String>,
    /// It wants a WASI world.
    pub wasi: bool,
    /// Version of `drystone:policy` that it speaks.
    pub wit_version: &'static str,
    /// SHA-256 of the component, in hex.
    pub sha256: String,
    /// Its size.
    pub bytes: usize,
}

impl Inspection {
    /// What an operator writes to grant all that it imports.
    pub fn allow(&self) -> String {
        let headers: Vec<_> = self.headers.iter().map(|name| format!("{name:?}")).collect();
        let grant = |import: &String| match &**import {
            "headers" => Some(format!("headers = [{}]", headers.join(", "))),
            import => grants::remedy(import).map(str::to_owned),
        };
        let wasi = self.wasi.then(|| "wasi = true".to_owned());
        let all: Vec<_> = self.imports.iter().filter_map(grant).chain(wasi).collect();
        if all.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", all.join(", ")) }
    }
}

/// Looks at the component `wasm`, and asks it to describe itself.
pub fn inspect(wasm: &[u8]) -> Result<Inspection, LoadError> {
    let host = |error: &dyn std::fmt::Display| LoadError::Host(error.to_string());
    let engine = engine::measuring().map_err(|error| host(&error))?;
    let loaded = load(&engine, None, wasm)?;
    let describe = describe(&engine, &loaded);
    let description = background::wait(describe).map_err(|error| host(&error))??;
    let Loaded { surface, sha256, .. } = loaded;
    Ok(Inspection {
        name: description.name,
        version: description.version,
        config_schema: description.config_schema,
        headers: description.headers,
        hooks: surface.hooks.iter().map(|hook| hook.name()).collect(),
        imports: surface.imports,
        wasi: surface.wasi,
        wit_version: VERSION,
        sha256,
        bytes: wasm.len(),
    })
}

async fn describe(
    engine: &Engine,
    loaded: &Loaded,
) -> Result<crate::bindings::exports::drystone::policy::plugin::Description, LoadError> {
    let allow = grants::everything();
    let services = Arc::new(Services::alone("inspected", &allow));
    let kit = Kit { services, limits: LIMITS, config: String::new() };
    let hooks: &[Hook] = &loaded.surface.hooks;
    let recipe = Recipe::new(engine, loaded, hooks, &allow, kit)?;
    Ok(Instance::new(&recipe).await?.describe().await?)
}
