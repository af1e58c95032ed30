//! Compiled components on disk.
//!
//! Loading one runs what is in it, so it must be ours: the folder is ours alone, and every file has
//! its digest beside it. A cache that does not work costs time at the start and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::load::hex;

/// Most that is kept. A component in Rust compiles to some 200 KiB, one in Python to 60 MiB.
const BYTES_MAX: u64 = 512 << 20;

/// A folder of compiled components.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    bytes_max: u64,
}

impl Cache {
    /// The cache in `folder`, or in the user's own; `None` where neither can be trusted or had.
    pub(crate) fn open(folder: Option<&Path>) -> Option<Self> {
        let own = || config::environment::cache_dir().map(|dir| dir.join("drystone/policies"));
        let folder = folder.map(Path::to_owned).or_else(own)?;
        match secure(&folder) {
            Ok(()) => Some(Self { folder, bytes_max: BYTES_MAX }),
            Err(error) => {
                let folder = folder.display();
                tracing::warn!("compiled policies are not kept in {folder}: {error}");
                None
            }
        }
    }

    /// The component `wasm` as this `engine` compiled it before.
    pub(crate) fn get(&self, engine: &Engine, wasm: &[u8]) -> Option<Component> {
        let key = key(engine, wasm);
        let compiled = fs::read(self.file(&key, "cwasm")).ok()?;
        let digest = fs::read_to_string(self.file(&key, "sha256")).ok()?;
        if digest != hex(&Sha256::digest(&compiled)) {
            tracing::warn!("the compiled policy {key} is damaged, it is compiled again");
            return None;
        }
        // What was used last is kept longest. If that cannot be noted, it goes sooner.
        let _ = File::open(self.file(&key, "cwasm")).map(|it| it.set_modified(SystemTime::now()));
        // SAFETY: `put` wrote these bytes: their digest is right, and only this user may write to
        // the folder. They are the bytes that were checked, not a file that may change.
        unsafe { Component::deserialize(engine, &compiled) }.ok()
    }

    /// Keeps `component`, compiled from `wasm`.
    pub(crate) fn put(&self, engine: &Engine, wasm: &[u8], component: &Component) {
        let kept = component.serialize().map_err(io::Error::other).and_then(|compiled| {
            let key = key(engine, wasm);
            let digest = hex(&Sha256::digest(&compiled));
            write(&self.file(&key, "cwasm"), &compiled)?;
            write(&self.file(&key, "sha256"), digest.as_bytes())?;
            self.prune(&key)
        });
        if let Err(error) = kept {
            tracing::warn!("a compiled policy could not be kept: {error}");
        }
    }

    /// Removes what was not used for longest, until the rest is not too much. `kept` stays, and
    /// what was left over by others goes like all else.
    fn prune(&self, kept: &str) -> io::Result<()> {
        let mut entries = self.entries()?;
        let mut bytes: u64 = entries.values().map(|entry| entry.bytes).sum();
        entries.remove(kept);
        let mut entries: Vec<_> = entries.into_values().collect();
        entries.sort_by_key(|entry| entry.used);
        for entry in entries {
            if bytes <= self.bytes_max {
                break;
            }
            // Another server may have been faster.
            entry.files.iter().for_each(|file| drop(fs::remove_file(file)));
            bytes -= entry.bytes;
        }
        Ok(())
    }

    /// What is there, by the key of each component.
    fn entries(&self) -> io::Result<BTreeMap<String, Entry>> {
        let mut entries = BTreeMap::<_, Entry>::new();
        for file in fs::read_dir(&self.folder)?.flatten() {
            let Ok(metadata) = file.metadata() else { continue };
            let name = file.file_name().to_string_lossy().into_owned();
            let key = name.split('.').next().unwrap_or_default().to_owned();
            let entry = entries.entry(key).or_default();
            entry.bytes += metadata.len();
            entry.used = entry.used.max(metadata.modified().ok());
            entry.files.push(file.path());
        }
        Ok(entries)
    }

    fn file(&self, key: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{key}.{kind}"))
    }
}

/// The files of one component.
#[derive(Debug, Default)]
struct Entry {
    bytes: u64,
    used: Option<SystemTime>,
    files: Vec<PathBuf>,
}

/// Makes the folder if need be, and sees that nobody else can write to it.
fn secure(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let probe = folder.join(format!("probe-{}", std::process::id()));
    fs::write(&probe, [])?;
    let us = fs::metadata(&probe)?.uid();
    fs::remove_file(&probe)?;
    let found = fs::metadata(folder)?;
    if found.uid() != us || found.mode() & 0o077 != 0 {
        return Err(io::Error::other("others may use the folder; `chmod 700` would do"));
    }
    Ok(())
}

/// Readers see the old file or the whole new one.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, file)).inspect_err(|_| {
        // What is left of a failed write is of no use, and the first error tells more.
        let _ = fs::remove_file(&unfinished);
    })
}

/// Names `wasm` together with everything that shapes its compilation.
fn key(engine: &Engine, wasm: &[u8]) -> String {
    let mut hasher = Sha256Hasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.chain_update(Sha256::digest(wasm)).finalize())
}

/// Lets anything that hashes be hashed to SHA-256.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Nobody asks: the digest is taken whole.
    fn finish(&self) -> u64 {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { folder: folder.path().to_owned(), bytes_max: 25 };
        for (age, name) in
            ["a.cwasm", "b.cwasm", "c.cwasm", "c.1.tmp", "d.cwasm"].iter().enumerate()
        {
            let file = folder.path().join(name);
            fs::write(&file, [0; 10]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age as u64);
            File::options().append(true).open(file).unwrap().set_modified(used).unwrap();
        }
        cache.prune("d").unwrap();
        let mut left: Vec<_> = cache.entries().unwrap().into_keys().collect();
        left.sort();
        assert_eq!(left, ["a", "d"], "c was the oldest but for d, which is new; then b");
    }
}
