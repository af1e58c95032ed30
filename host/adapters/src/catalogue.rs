//! The adapters that can be asked for, those that were refused, and how one is loaded.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use contract::adapter::{Generation, Kind};

use crate::compile::{Checked, check_sha256};
use crate::cut::Group;
use crate::error::AdapterError;
use crate::residency::Limits;
use crate::{manifest, weights};

/// Every adapter of a deployment by its name. It may change while it serves; whoever looks sees one
/// state of it, and an [`Entry`] never changes. Any thread may read it, change it and load.
#[derive(Debug)]
pub struct Catalogue {
    group: Group,
    limits: Limits,
    adapters: ArcSwap<Adapters>,
    /// Makes changes one by one.
    changing: Mutex<()>,
    next_id: AtomicU64,
}

type Adapters = BTreeMap<String, Result<Arc<Entry>, Arc<Refused>>>;

/// Adapters that may be served at once. What is known of one takes some hundred bytes.
pub const ADAPTERS_MAX: usize = 65_536;

/// An adapter that passed its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Tells it from all others of its catalogue, those that had its name before included.
    pub id: u64,
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
    /// What its weights file must hash to whenever it is read, in hex.
    pub sha256: Option<String>,
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

/// Why an adapter cannot be added to a catalogue that serves, or taken from it. For callers:
/// messages have no paths.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The name is taken.
    #[error("the adapter {0:?} is served already")]
    Taken(String),
    /// Nothing has the name.
    #[error("there is no adapter {0:?}")]
    Unknown(String),
    /// The adapter cannot be served.
    #[error("adapter {name:?}: {reason}")]
    Refused {
        /// The name it would be served under.
        name: String,
        /// Why not.
        reason: Box<AdapterError>,
    },
    /// Every slot is for pinned adapters.
    #[error("all {slots_max} slots are for pinned adapters; raise adapters.slots_max")]
    Slots {
        /// Slots that there are.
        slots_max: usize,
    },
    /// There are too many.
    #[error("{ADAPTERS_MAX} adapters are served, and no more can be; unload one")]
    Full,
}

/// Why a name cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Nothing has this name.
    #[error("there is no adapter of this name")]
    Unknown,
    /// The adapter is there, but was refused.
    #[error("this adapter cannot be served: {}", .0.reason)]
    Refused(Arc<Refused>),
}

impl Catalogue {
    /// Checks the config and the tensor headers of every adapter; reads no other data. A bad one
    /// ends the start if it was named, and is logged and kept as refused if it was found.
    pub fn open(
        sources: Sources<'_>,
        group: Group,
        limits: Limits,
    ) -> Result<Self, CatalogueError> {
        let next_id = AtomicU64::new(0);
        let check = |named: &Named| {
            let id = next_id.fetch_add(1, Ordering::Relaxed);
            Entry::check(id, named, &group, limits).map(Arc::new)
        };
        let mut adapters = Adapters::new();
        for named in sources.named {
            let entry = check(named).map_err(CatalogueError::Named)?;
            if adapters.insert(named.name.clone(), Ok(entry)).is_some() {
                return Err(CatalogueError::Twice(named.name.clone()));
            }
        }
        for found in sources.dir.map(list).transpose()?.unwrap_or_default() {
            if let btree_map::Entry::Vacant(vacant) = adapters.entry(found.name.clone()) {
                vacant.insert(check(&found).inspect_err(Refused::log).map_err(Arc::new));
            }
        }
        let (adapters, changing) = (ArcSwap::from_pointee(adapters), Mutex::default());
        let catalogue = Self { group, limits, adapters, changing, next_id };
        catalogue.check_slots(limits.slots_max)?;
        Ok(catalogue)
    }

    /// Serves one more adapter, once it passed the checks of the start. With `replace` it takes the
    /// place of one of its name, and is pinned if that was: sequences that began with the old one
    /// end with it. Where `sha256` is given, the weights file must hash to it, now and whenever it
    /// is read. Returns when the next caller can ask for it.
    pub fn add(
        &self,
        name: &str,
        path: &Path,
        replace: bool,
        sha256: Option<&str>,
    ) -> Result<Arc<Entry>, ChangeError> {
        let taken = |adapters: &Adapters| adapters.get(name).is_some_and(Result::is_ok);
        if !replace && taken(&self.adapters.load()) {
            return Err(ChangeError::Taken(name.to_owned()));
        }
        let mut entry = self.check(name, path, sha256)?;
        self.change(|adapters| {
            if !replace && taken(adapters) {
                return Err(ChangeError::Taken(name.to_owned()));
            }
            let before = adapters.get(name).and_then(|it| it.as_ref().ok());
            entry.pinned = before.is_some_and(|before| before.pinned);
            self.check_room(adapters, &entry)?;
            let entry = Arc::new(entry);
            adapters.insert(name.to_owned(), Ok(Arc::clone(&entry)));
            Ok(entry)
        })
    }

    /// Serves an adapter no more. Sequences that have it keep it to their end.
    pub fn remove(&self, name: &str) -> Result<(), ChangeError> {
        self.change(|adapters| match adapters.remove(name) {
            Some(_) => Ok(()),
            None => Err(ChangeError::Unknown(name.to_owned())),
        })
    }

    /// Adapters that can be served, by name.
    pub fn entries(&self) -> impl Iterator<Item = Arc<Entry>> {
        let adapters = self.adapters.load();
        let entries: Vec<_> =
            adapters.values().filter_map(|it| it.as_ref().ok()).cloned().collect();
        entries.into_iter()
    }

    /// Adapters that cannot, by name.
    pub fn refused(&self) -> impl Iterator<Item = Arc<Refused>> {
        let adapters = self.adapters.load();
        let refused: Vec<_> =
            adapters.values().filter_map(|it| it.as_ref().err()).cloned().collect();
        refused.into_iter()
    }

    /// Looks a name up.
    pub fn get(&self, name: &str) -> Result<Arc<Entry>, Unavailable> {
        match self.adapters.load().get(name) {
            Some(Ok(entry)) => Ok(Arc::clone(entry)),
            Some(Err(refused)) => Err(Unavailable::Refused(Arc::clone(refused))),
            None => Err(Unavailable::Unknown),
        }
    }

    /// Whether this very entry can be asked for: nothing took its place.
    pub fn serves(&self, entry: &Entry) -> bool {
        let adapters = self.adapters.load();
        let served = adapters.get(&entry.name).and_then(|served| served.as_ref().ok());
        served.is_some_and(|served| served.id == entry.id)
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
            true => checked.compile(&entry.name, &self.group, entry.sha256.as_deref()),
            false => Err(AdapterError::Changed),
        }
    }

    fn check(&self, name: &str, path: &Path, sha256: Option<&str>) -> Result<Entry, ChangeError> {
        let refused = |reason| ChangeError::Refused { name: name.to_owned(), reason };
        let named = Named { name: name.to_owned(), path: path.to_owned(), pinned: false };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = Entry::check(id, &named, &self.group, self.limits);
        let entry = entry.map_err(|it| refused(it.reason))?;
        if let Some(wanted) = sha256 {
            check_sha256(path, wanted).map_err(|reason| refused(Box::new(reason)))?;
        }
        Ok(Entry { sha256: sha256.map(str::to_owned), ..entry })
    }

    /// Changes a copy, and puts it in place if that went well.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Adapters) -> Result<T, ChangeError>,
    ) -> Result<T, ChangeError> {
        let _one_by_one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut adapters = Adapters::clone(&self.adapters.load());
        let changed = change(&mut adapters)?;
        self.adapters.store(Arc::new(adapters));
        Ok(changed)
    }

    fn check_room(&self, adapters: &Adapters, entry: &Entry) -> Result<(), ChangeError> {
        let slots_max = self.limits.slots_max;
        let pinned = adapters.values().flatten().filter(|served| served.pinned).count();
        match () {
            () if pinned >= slots_max && !entry.pinned => Err(ChangeError::Slots { slots_max }),
            () if adapters.len() >= ADAPTERS_MAX && !adapters.contains_key(&entry.name) => {
                Err(ChangeError::Full)
            }
            () => Ok(()),
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
    fn check(id: u64, named: &Named, group: &Group, limits: Limits) -> Result<Self, Refused> {
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
        Ok(Self { id, name, path, kind, lora_rank, bytes, pinned, sha256: None })
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
