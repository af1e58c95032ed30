//! The sources of a project, and when they change.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Sources are looked at so often, and are taken to be whole when they rest for as long. A project
/// has some dozens of files, so looking costs less than having the system tell.
const INTERVAL: Duration = Duration::from_millis(100);

/// Size and time of the last change, by file.
type Prints = BTreeMap<PathBuf, (u64, SystemTime)>;

/// What a project is built from, as it was when last looked at.
#[derive(Debug)]
pub struct Sources {
    folder: PathBuf,
    known: Prints,
}

impl Sources {
    /// All in `folder` that no program writes by itself.
    pub fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), known: prints(folder) }
    }

    /// Waits until some source is not as it was, and all of them rest.
    pub fn wait(&mut self) {
        loop {
            std::thread::sleep(INTERVAL);
            let mut now = prints(&self.folder);
            if now == self.known {
                continue;
            }
            loop {
                std::thread::sleep(INTERVAL);
                let later = prints(&self.folder);
                if later == now {
                    self.known = now;
                    return;
                }
                now = later;
            }
        }
    }
}

fn prints(folder: &Path) -> Prints {
    let mut found = Prints::new();
    collect(folder, &mut found);
    found
}

fn collect(folder: &Path, found: &mut Prints) {
    // A folder that is gone has no sources; that is a change too.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| is_source(&entry.path())) {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            collect(&entry.path(), found);
        } else if let Ok(modified) = metadata.modified() {
            found.insert(entry.path(), (metadata.len(), modified));
        }
    }
}

fn is_source(path: &Path) -> bool {
    /// What cargo, this program and a server's recordings write.
    const WRITTEN: [&str; 4] = ["wasm", "new", "ndjson", "log"];
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let extension = path.extension().map(|extension| extension.to_string_lossy());
    let written = extension.is_some_and(|extension| WRITTEN.contains(&&*extension));
    // Editors and version control keep their own in hidden files.
    !written && name != "target" && name != "Cargo.lock" && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_no_source() {
        for name in ["target", "a/b.wasm", "Cargo.lock", ".git", "src/.lib.rs.swp"] {
            assert!(!is_source(Path::new(name)), "{name}");
        }
        for name in ["src", "src/lib.rs", "Cargo.toml", "words.txt"] {
            assert!(is_source(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn a_change_in_any_folder_is_seen_and_what_is_built_is_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("src/deep")).unwrap();
        fs::write(folder.path().join("src/deep/a.rs"), "a").unwrap();
        let sources = Sources::of(folder.path());
        fs::write(folder.path().join("built.wasm"), "b").unwrap();
        assert_eq!(prints(folder.path()), sources.known);
        fs::write(folder.path().join("src/deep/a.rs"), "longer").unwrap();
        assert_ne!(prints(folder.path()), sources.known);
    }
}
