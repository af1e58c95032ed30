//! Memory for lines: zeroed, aligned, and on huge pages where it is large.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

use crate::error::{Error, Result};

use super::simd::Line;

/// Owned lines.
pub enum Lines {
    /// Few.
    Heap(Vec<Line>),
    /// Many, with their number. Streaming gigabytes through 4 KiB pages costs a tenth of the
    /// bandwidth in page walks, so these pages are huge if the system agrees.
    Mapped(MmapMut),
}

/// From this size on, memory is mapped: two huge pages.
const MAPPED_BYTES: usize = 4 << 20;

impl Lines {
    /// `count` lines of zeros.
    pub fn new(count: usize) -> Result<Self> {
        let bytes = count * size_of::<Line>();
        if bytes < MAPPED_BYTES {
            return Ok(Self::Heap(vec![Line([0; 64]); count]));
        }
        let memory = |_| Error::Memory { what: "a weight or cache", bytes };
        let map = MmapMut::map_anon(bytes).map_err(memory)?;
        #[cfg(target_os = "linux")]
        // A kernel without huge pages refuses; the memory is as good as any then.
        let _ = map.advise(Advice::HugePage);
        Ok(Self::Mapped(map))
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Self::Heap(lines) => lines,
            // SAFETY: a mapping starts on a page, so it is aligned to lines; any bytes are a line.
            Self::Mapped(map) => unsafe {
                std::slice::from_raw_parts(map.as_ptr().cast(), map.len() / size_of::<Line>())
            },
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Self::Heap(lines) => lines,
            // SAFETY: as above, and the mapping is borrowed for as long as the lines.
            Self::Mapped(map) => unsafe {
                let count = map.len() / size_of::<Line>();
                std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), count)
            },
        }
    }
}
