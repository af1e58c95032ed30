//! Finds adapters below one folder, for callers who name them while the server runs.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::{manifest, weights};

/// A folder below which adapters may be loaded. Who can write into it can replace a file after it
/// was checked, so it belongs to the operator.
#[derive(Clone, Debug)]
pub struct Root {
    configured: PathBuf,
    /// Without symlinks.
    real: PathBuf,
}

/// Why a path leads to no adapter. The messages have no path but the caller's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Nothing is there.
    #[error("No adapter found for '{0}'")]
    Absent(String),
    /// It leads elsewhere. What lies there is not told.
    #[error("'{0}' does not lead below adapters.resolve_root")]
    Outside(String),
}

impl Root {
    /// Opens a folder that is there.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { configured: path.to_owned(), real: path.canonicalize()? })
    }

    /// The PEFT folder that `asked` names: relative to the root, or a whole path below it. Neither
    /// the folder nor its two files may lead out through a symlink.
    pub fn find(&self, asked: &str) -> Result<PathBuf, RootError> {
        let outside = || RootError::Outside(asked.to_owned());
        let relative = self.relative(Path::new(asked)).ok_or_else(outside)?;
        let absent = |_| RootError::Absent(asked.to_owned());
        let folder = self.real.join(relative).canonicalize().map_err(absent)?;
        if folder == self.real || !folder.starts_with(&self.real) {
            return Err(outside());
        }
        for file in [manifest::FILE, weights::FILE] {
            let real = folder.join(file).canonicalize().map_err(absent)?;
            if !real.starts_with(&self.real) {
                return Err(outside());
            }
        }
        Ok(folder)
    }

    /// What is left of a path behind the root; `None` where it steps up or begins elsewhere.
    fn relative<'a>(&self, asked: &'a Path) -> Option<&'a Path> {
        let below = [&self.configured, &self.real];
        let relative = match asked.is_absolute() {
            true => below.iter().find_map(|root| asked.strip_prefix(root).ok())?,
            false => asked,
        };
        let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        relative.components().all(plain).then_some(relative)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn adapter(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        [manifest::FILE, weights::FILE]
            .iter()
            .for_each(|it| fs::write(folder.join(it), "").unwrap());
    }

    #[test]
    fn a_path_leads_below_the_root_or_nowhere() {
        let (dir, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let path = dir.path();
        adapter(&path.join("team/sql"));
        adapter(elsewhere.path());
        fs::create_dir(path.join("empty")).unwrap();
        symlink(elsewhere.path(), path.join("out")).unwrap();
        symlink(path.join("team/sql"), path.join("alias")).unwrap();
        fs::create_dir(path.join("half")).unwrap();
        fs::write(path.join("half").join(manifest::FILE), "").unwrap();
        let stolen = elsewhere.path().join(weights::FILE);
        symlink(stolen, path.join("half").join(weights::FILE)).unwrap();
        adapter(path);

        let root = Root::open(path).unwrap();
        let real = path.canonicalize().unwrap().join("team/sql");
        let whole = path.join("team/sql").display().to_string();
        for asked in ["team/sql", "./team/sql/", "alias", &whole] {
            assert_eq!(root.find(asked), Ok(real.clone()), "{asked}");
        }
        for asked in ["nothing", "empty", "team"] {
            assert_eq!(root.find(asked), Err(RootError::Absent(asked.to_owned())));
        }
        let away = elsewhere.path().display().to_string();
        let up = format!("{whole}/../..");
        for asked in ["", ".", "..", "team/../team/sql", "out", "half", "/", &away, &up] {
            assert_eq!(root.find(asked), Err(RootError::Outside(asked.to_owned())));
        }
    }
}
