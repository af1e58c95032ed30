//! What can go wrong in a backend.

/// A failed operation. Shapes are checked by their makers; these are resource failures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Memory ran out.
    #[error("out of memory: {what} needs {bytes} bytes")]
    Memory {
        /// What was being allocated.
        what: &'static str,
        /// How much it needs.
        bytes: usize,
    },
    /// An adapter that the backend has no way to compute; nothing else is harmed.
    #[error("{0}")]
    Unfit(String),
    /// The device or its library said no.
    #[error("{0}")]
    Device(String),
}

/// Result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
