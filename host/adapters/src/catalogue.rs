//! The adapters that can be asked for, those that were refused, and how one is loaded.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use contract::adapter::{Generation, Kind};

use crate::compile::Checked;
use crate::cut::Group;
use crate::error::AdapterError;
use crate::residency::Limits;
use crate::{manifest, weights};

/// Every adapter of a deployment by its name. It never changes, so any thread may read it and load.
#[derive(Debug)]
pub struct Catalogue {
    group: Group,
    adapters: BTreeMap<String, Result<Arc<Entry>, Refused>>,
}

/// An adapter that passed its checks at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name it is served under.
    pub name: String,
    /// Its PEFT folder.
    pub path: PathBuf,
    /// What it is on disk.
    pub kind: Kind,
    /// Largest full lora rank of any module.
    pub lora_rank: usize,
    /// Host memory that its generation takes, in bytes.
    pub bytes: usize,
    /// Loaded at start and never evicted from its slot.
    pub pinned: bool,
}

/// An adapter that was found and cannot be served.
#[derive(Debug)]
pub struct Refused {
    /// The name it would be served under.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Why not.
    pub reason: Box<AdapterError>,
}

/// Where adapters lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// Every PEFT folder in it is served under its folder's name, unless `named` has that name.
    pub dir: Option<&'a Path>,
    /// Adapters named one by one.
    pub named: &'a [Named],
}

/// An adapter named by the operator.
#[derive(Clone, Debug)]
pub struct Named {
    /// The name it is served under.
    pub name: String,
    /// Its PEFT folder.
    pub path: PathBuf,
    /// Loaded at start and never evicted from its slot.
    pub pinned: bool,
}

/// Why a deployment's adapters cannot be served at all. For the operator: messages have paths.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The folder of adapters cannot be listed.
    #[error("adapters.dir = {}: {source}", path.display())]
    Dir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Two adapters have one name.
    #[error("two [[adapter]] have the name {0:?}; give each its own")]
    Twice(String),
    /// An adapter that was asked for by name cannot be served.
    #[error("adapter {:?} in {}: {}", .0.name, .0.path.display(), .0.reason)]
    Named(Refused),
    /// Pinned adapters leave no slot for the others.
    #[error(
        "{pinned} of {adapters} adapters are pinned, adapters.slots_max = {slots_max}; \
         {} would do", (pinned + 1).min(*adapters)
    )]
    Slots {
        /// Adapters that never leave their slot.
        pinned: usize,
        /// All adapters.
        adapters: usize,
        /// Slots that there are.
        slots_max: usize,
    },
}

/// Why a name cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable<'a> {
    /// Nothing has this name.
    #[error("there is no adapter of this name")]
    Unknown,
    /// The adapter is there, but was refused.
    #[error("this adapter cannot be served: {0}")]
    Refused(&'a AdapterError),
}

impl Catalogue {
    /// Checks the config and the tensor headers of every adapter; reads no other data. A bad one
    /// ends the start if it was named, and is logged and kept as refused if it was found.
    pub fn open(
        sources: Sources<'_>,
        group: Group,
        limits: Limits,
    ) -> Result<Self, CatalogueError> {
        let check = |named: &Named| Entry::check(named, &group, limits).map(Arc::new);
        let mut adapters = BTreeMap::new();
        for named in sources.named {
            let entry = check(named).map_err(CatalogueError::Named)?;
            if adapters.insert(named.name.clone(), Ok(entry)).is_some() {
                return Err(CatalogueError::Twice(named.name.clone()));
            }
        }
        for found in sources.dir.map(list).transpose()?.unwrap_or_default() {
            if let btree_map::Entry::Vacant(vacant) = adapters.entry(found.name.clone()) {
                vacant.insert(check(&found).inspect_err(Refused::log));
            }
        }
        let catalogue = Self { group, adapters };
        catalogue.check_slots(limits.slots_max)?;
        Ok(catalogue)
    }

    /// Adapters that can be served, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.adapters.values().filter_map(|adapter| adapter.as_ref().ok())
    }

    /// Adapters that cannot, by name.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.adapters.values().filter_map(|adapter| adapter.as_ref().err())
    }

    /// Looks a name up.
    pub fn get(&self, name: &str) -> Result<&Arc<Entry>, Unavailable<'_>> {
        match self.adapters.get(name) {
            Some(Ok(entry)) => Ok(entry),
            Some(Err(refused)) => Err(Unavailable::Refused(&refused.reason)),
            None => Err(Unavailable::Unknown),
        }
    }

    /// Reads an adapter and cuts it for every rank. Takes as long as its size asks for, so the
    /// engine has it done on a thread of its own.
    ///
    /// The folder may have changed since the start. New values are a new generation; other
    /// dimensions are refused, because host memory was set aside for the old ones.
    pub fn load(&self, entry: &Entry) -> Result<Generation, AdapterError> {
        let checked = Checked::open(&entry.path, &self.group)?;
        let plan = &checked.plan;
        match (plan.kind(), plan.bytes(&self.group)) == (entry.kind, entry.bytes) {
            true => checked.compile(&entry.name, &self.group),
            false => Err(AdapterError::Changed),
        }
    }

    fn check_slots(&self, slots_max: usize) -> Result<(), CatalogueError> {
        let adapters = self.entries().count();
        let pinned = self.entries().filter(|entry| entry.pinned).count();
        match slots_max >= (pinned + 1).min(adapters) {
            true => Ok(()),
            false => Err(CatalogueError::Slots { pinned, adapters, slots_max }),
        }
    }
}

impl Entry {
    fn check(named: &Named, group: &Group, limits: Limits) -> Result<Self, Refused> {
        let Named { name, path, pinned } = named.clone();
        let refuse =
            |reason| Refused { name: name.clone(), path: path.clone(), reason: Box::new(reason) };
        let plan = Checked::open(&path, group).map_err(refuse)?.plan;
        let (bytes, bytes_max) = (plan.bytes(group), limits.host_bytes_max);
        if bytes > bytes_max {
            return Err(refuse(AdapterError::HostMemory { bytes, bytes_max }));
        }
        plan.warn(&name);
        let (kind, lora_rank) = (plan.kind(), plan.lora_rank());
        Ok(Self { name, path, kind, lora_rank, bytes, pinned })
    }
}

impl Refused {
    fn log(&self) {
        let (adapter, path) = (&self.name, self.path.display());
        tracing::error!(adapter, %path, "adapter refused: {}", self.reason);
    }
}

/// The PEFT folders in a folder: those with either of PEFT's files, so that one without the other
/// is told of rather than passed over.
fn list(dir: &Path) -> Result<Vec<Named>, CatalogueError> {
    let failed = |source| CatalogueError::Dir { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for folder in fs::read_dir(dir).map_err(failed)? {
        let folder = folder.map_err(failed)?;
        let (name, path) = (folder.file_name().to_string_lossy().into_owned(), folder.path());
        if [manifest::FILE, weights::FILE].iter().any(|file| path.join(file).exists()) {
            found.push(Named { name, path, pinned: false });
        }
    }
    Ok(found)
}
