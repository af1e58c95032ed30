//! What a component exports and imports, read from its own type.

use wit_component::DecodedWasm;
use wit_parser::{Resolve, WorldItem, WorldKey};

use crate::PackError;

/// The contract that every plugin keeps to; it is no hook.
const PLUGIN: &str = "plugin";
/// Words that need no grant.
const TYPES: &str = "types";

/// The interfaces of a component, by their short names (`select-adapter`), sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surface {
    /// Hooks that it answers.
    pub hooks: Vec<String>,
    /// What it asks of the host.
    pub imports: Vec<String>,
}

impl Surface {
    /// Reads a component.
    pub fn of(component: &[u8]) -> Result<Self, PackError> {
        let wrong = |why: String| PackError::Component(why);
        let decoded = wit_component::decode(component).map_err(|e| wrong(format!("{e:#}")))?;
        let DecodedWasm::Component(resolve, world) = decoded else {
            return Err(wrong("it is a package of interfaces".into()));
        };
        let world = &resolve.worlds[world];
        let exports = names(&resolve, world.exports.iter());
        if !exports.iter().any(|name| name == PLUGIN) {
            return Err(wrong("it has no `#[policy] impl Policy`".into()));
        }
        let without = |names: Vec<String>, name: &str| {
            names.into_iter().filter(|other| other != name).collect()
        };
        let imports = names(&resolve, world.imports.iter());
        Ok(Self { hooks: without(exports, PLUGIN), imports: without(imports, TYPES) })
    }
}

fn names<'a>(
    resolve: &Resolve,
    items: impl Iterator<Item = (&'a WorldKey, &'a WorldItem)>,
) -> Vec<String> {
    let name = |(key, item): (&WorldKey, &WorldItem)| match item {
        WorldItem::Interface { id, .. } => {
            resolve.interfaces[*id].name.clone().unwrap_or_else(|| resolve.name_world_key(key))
        }
        _ => resolve.name_world_key(key),
    };
    let mut names: Vec<_> = items.map(name).collect();
    names.sort_unstable();
    names
}
