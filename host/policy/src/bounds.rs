//! What an instance may hold.

use wasmtime::ResourceLimiter;

/// Entries of all tables of one instance; a large guest has a few thousand functions.
const TABLE_ELEMENTS: usize = 100_000;
/// Core instances, tables and memories of one component; one of CPython has dozens.
const PARTS: usize = 128;

/// Growing would exceed the instance's bounds.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the instance ran into its memory limit")]
pub(crate) struct MemoryExhausted;

/// Bounds of one instance. Growing beyond them ends the guest: most toolchains turn a refusal into
/// a trap that no longer tells why.
#[derive(Debug)]
pub(crate) struct Bounds {
    memory: usize,
    used: usize,
    peak: usize,
}

impl Bounds {
    /// At most `memory` bytes in all linear memories.
    pub(crate) fn new(memory: usize) -> Self {
        Self { memory, used: 0, peak: 0 }
    }

    /// The most that linear memories held.
    pub(crate) fn peak(&self) -> usize {
        self.peak
    }
}

impl ResourceLimiter for Bounds {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.used + (desired - current);
        if used > self.memory {
            return Err(MemoryExhausted.into());
        }
        self.used = used;
        self.peak = self.peak.max(used);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS { Err(MemoryExhausted.into()) } else { Ok(true) }
    }

    fn instances(&self) -> usize {
        PARTS
    }

    fn tables(&self) -> usize {
        PARTS
    }

    fn memories(&self) -> usize {
        PARTS
    }
}
