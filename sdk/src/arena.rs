//! The allocator of a plugin: a bump arena in static memory that empties itself between calls.
//!
//! An instance's first allocation through the usual allocator grows the memory, which costs more
//! than most hooks do. A hook's allocations fit the arena, and when the last of them is given back
//! the next call starts at the bottom again. What does not fit goes to the usual allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};

const BYTES: usize = 128 * 1024;

#[repr(align(16))]
struct Block(UnsafeCell<[u8; BYTES]>);

struct Arena {
    block: Block,
    /// Offset of the first free byte.
    top: Cell<usize>,
    /// Below this, allocations stay for good and are not counted.
    floor: Cell<usize>,
    /// Allocations above the floor that have not been given back.
    live: Cell<usize>,
}

// SAFETY: a component has one thread.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena {
    block: Block(UnsafeCell::new([0; BYTES])),
    top: Cell::new(0),
    floor: Cell::new(0),
    live: Cell::new(0),
};

/// Keeps what has been allocated so far; the arena empties itself down to here from now on.
pub(crate) fn settle() {
    ARENA.floor.set(ARENA.top.get());
    ARENA.live.set(0);
}

impl Arena {
    fn base(&self) -> *mut u8 {
        self.block.0.get().cast()
    }

    /// Where in the arena a pointer is, if it is.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        let offset = pointer.addr().wrapping_sub(self.base().addr());
        (offset < BYTES).then_some(offset)
    }

    /// Takes bytes from the top.
    fn bump(&self, layout: Layout) -> Option<*mut u8> {
        let base = self.base().addr();
        let start = (base + self.top.get()).checked_next_multiple_of(layout.align())? - base;
        let end = start.checked_add(layout.size()).filter(|end| *end <= BYTES)?;
        self.top.set(end);
        self.live.set(self.live.get() + 1);
        Some(self.base().wrapping_add(start))
    }

    fn release(&self, offset: usize) {
        if offset < self.floor.get() {
            return;
        }
        self.live.set(self.live.get() - 1);
        if self.live.get() == 0 {
            self.top.set(self.floor.get());
        }
    }

    /// Grows or shrinks the newest allocation where it is.
    fn resize(&self, offset: usize, old: usize, new: usize) -> bool {
        let newest = offset + old == self.top.get() && offset >= self.floor.get();
        let fits = offset.checked_add(new).filter(|end| *end <= BYTES);
        match fits {
            Some(end) if newest => {
                self.top.set(end);
                true
            }
            _ => false,
        }
    }
}

// SAFETY: `bump` hands out disjoint, aligned pieces of the block; `release` reuses them only when
// none is in use; all other memory is the system allocator's, which `offset` tells apart.
unsafe impl GlobalAlloc for Arena {
    // SAFETY: the caller keeps to `GlobalAlloc::alloc`, and so does the call below.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: `layout` is the caller's, with a size above zero.
        self.bump(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    // SAFETY: the caller keeps to `GlobalAlloc::dealloc`, and so does the call below.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(offset) => self.release(offset),
            // SAFETY: not from the arena, so it came from `System` with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    // SAFETY: the caller keeps to `GlobalAlloc::realloc`, and so do the calls below.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(pointer) else {
            // SAFETY: not from the arena, so it came from `System` with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        if self.resize(offset, layout.size(), size) {
            return pointer;
        }
        // SAFETY: the alignment is that of a valid layout, and the caller vouches for the size;
        // both places are valid for the bytes copied and do not overlap.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                pointer.copy_to_nonoverlapping(moved, size.min(layout.size()));
                self.dealloc(pointer, layout);
            }
            moved
        }
    }
}
