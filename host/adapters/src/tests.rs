//! Tests over whole folders: what is loaded, what is refused, what is resident.

/// Folders are found, checked, named and loaded.
mod catalogue;
/// Every kind of adapter at every number of ranks adds what the file says, and is cut as it should.
mod deltas;
/// Folders on disk and what their tensors mean, read independently of the crate.
mod fixture;
/// What does not fit is refused with a message that names it, whatever the bytes.
mod refusals;
/// Slots and host memory are never given twice, nor taken from who needs them.
mod residency;
