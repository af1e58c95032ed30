//! What a component asks of its host and offers to it.

use contract::policy::hook::Hook;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;

use crate::load::LoadError;

/// The package of the interfaces, and the version that this host speaks.
const PACKAGE: &str = "drystone:policy/";
pub(crate) const VERSION: &str = "0.1.0";

/// Names of the imports and exports of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Surface {
    /// Interfaces of `drystone:policy`, without package and version.
    pub(crate) imports: Vec<String>,
    /// It wants a WASI world.
    pub(crate) wasi: bool,
    /// The hooks it answers, in their order.
    pub(crate) hooks: Vec<Hook>,
}

impl Surface {
    /// Reads the types of `component`.
    pub(crate) fn of(component: &Component, engine: &Engine) -> Result<Self, LoadError> {
        let ty = component.component_type();
        let mut surface = Self { imports: Vec::new(), wasi: false, hooks: Vec::new() };
        for (name, _) in ty.imports(engine) {
            match interface(name)? {
                Some(import) => surface.imports.push(import.to_owned()),
                None if name.starts_with("wasi:") => surface.wasi = true,
                None => return Err(LoadError::Unknown(name.to_owned())),
            }
        }
        let instances = ty.exports(engine).filter_map(|(name, item)| {
            matches!(item.ty, ComponentItem::ComponentInstance(_)).then_some(name)
        });
        let exports: Result<Vec<_>, _> = instances.map(interface).collect();
        surface.hooks = hooks(&exports?.into_iter().flatten().collect::<Vec<_>>())?;
        Ok(surface)
    }
}

/// The interface that `name` means in `drystone:policy`; `None` where it is of another package.
fn interface(name: &str) -> Result<Option<&str>, LoadError> {
    let Some(rest) = name.strip_prefix(PACKAGE) else { return Ok(None) };
    let (interface, version) = rest.split_once('@').unwrap_or((rest, "none"));
    // A patch of the same minor version means the same; before 1.0 each minor is its own.
    let (ours, _) = VERSION.rsplit_once('.').unwrap_or((VERSION, ""));
    let same = version.strip_prefix(ours).is_some_and(|patch| patch.starts_with('.'));
    if same {
        return Ok(Some(interface));
    }
    Err(LoadError::WitVersion { interface: interface.to_owned(), found: version.to_owned() })
}

fn hooks(exports: &[&str]) -> Result<Vec<Hook>, LoadError> {
    if !exports.contains(&"plugin") {
        return Err(LoadError::NoPlugin);
    }
    let hooks = Hook::ALL.into_iter().filter(|hook| exports.contains(&hook.name()));
    let hooks: Vec<_> = hooks.collect();
    if hooks.is_empty() { Err(LoadError::NoHooks) } else { Ok(hooks) }
}
