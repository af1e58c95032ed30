//! What can go wrong below the group.

use std::io;
use std::path::{Path, PathBuf};

use collective::comm::CommError;

/// A model that cannot be loaded, or a rank that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model folder cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the model folder is not what it should be.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What was found and what would do.
        why: String,
    },
    /// A generation that is not cut for this model and group; the rank is unharmed.
    #[error("{0}")]
    Generation(String),
    /// A step that this group cannot compute; the rank is unharmed.
    #[error("{0}")]
    Step(String),
    /// The device is too small for what was asked for.
    #[error("{0}")]
    NoRoom(String),
    /// The backend failed.
    #[error(transparent)]
    Kernel(#[from] kernels::error::Error),
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] CommError),
}

impl Error {
    pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unreadable { path, source }
    }

    pub(crate) fn unusable(path: &Path, why: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), why: why.into() }
    }
}

/// Result of work on a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;
