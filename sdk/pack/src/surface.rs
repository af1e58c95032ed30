//! What a component exports and imports, read from its own type.

use wit_component::DecodedWasm;
use wit_parser::{Resolve, WorldItem, WorldKey};

use crate::PackError;

/// The package of the contract, of whatever version.
const CONTRACT: &str = "drystone:policy/";
/// The interface that every plugin keeps to; it is no hook.
const PLUGIN: &str = "plugin";
/// Words that need no grant.
const TYPES: &str = "types";

/// The interfaces of a component, by their short names (`select-adapter`); what is not of the
/// contract has its long name, with a colon.
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
        let mut hooks = names(&resolve, world.exports.iter());
        if !hooks.iter().any(|name| name == PLUGIN) {
            return Err(wrong("it has no `#[policy] impl Policy`".into()));
        }
        // Some languages export matters of their own; the server does not look at them.
        hooks.retain(|name| name != PLUGIN && !name.contains(':'));
        let mut imports = names(&resolve, world.imports.iter());
        imports.retain(|name| name != TYPES);
        Ok(Self { hooks, imports })
    }
}

/// Short names for what the contract has, long ones with a colon for all else, sorted.
fn names<'a>(
    resolve: &Resolve,
    items: impl Iterator<Item = (&'a WorldKey, &'a WorldItem)>,
) -> Vec<String> {
    let mut names: Vec<_> = items.map(|(key, _)| name(resolve, key)).collect();
    names.sort_unstable();
    names
}

fn name(resolve: &Resolve, key: &WorldKey) -> String {
    let long = resolve.name_world_key(key);
    let short = long.strip_prefix(CONTRACT).and_then(|rest| rest.split('@').next());
    match short {
        Some(short) => short.to_owned(),
        None if long.contains(':') => long,
        None => format!("other:{long}"),
    }
}
