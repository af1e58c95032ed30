//! Compiled components on disk.
//!
//! Loading one runs what is in it, so it must be ours: the folder is ours alone, and every file has
//! its digest beside it. A cache that does not work costs time at the start and nothing else.

use std::fs::{self, DirBuilder};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::load::hex;

/// A folder of compiled components.
#[derive(Debug)]
pub(crate) struct Cache(PathBuf);

impl Cache {
    /// The cache in `folder`, or in the user's own; `None` where neither can be trusted or had.
    pub(crate) fn open(folder: Option<&Path>) -> Option<Self> {
        let own = || config::environment::cache_dir().map(|dir| dir.join("drystone/policies"));
        let folder = folder.map(Path::to_owned).or_else(own)?;
        match secure(&folder) {
            Ok(()) => Some(Self(folder)),
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
            write(&self.file(&key, "sha256"), digest.as_bytes())
        });
        if let Err(error) = kept {
            tracing::warn!("a compiled policy could not be kept: {error}");
        }
    }

    fn file(&self, key: &str, kind: &str) -> PathBuf {
        self.0.join(format!("{key}.{kind}"))
    }
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
