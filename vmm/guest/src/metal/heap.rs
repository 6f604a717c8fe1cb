//! The heap: one region of RAM, one thread.

use core::alloc::{GlobalAlloc, Layout};

use talc::TalcCell;
use talc::source::Manual;
use tandem_guest::command::Memory;

struct Heap(TalcCell<Manual>);

// SAFETY: there is one thread, and interrupt handlers do not allocate.
unsafe impl Sync for Heap {}

// SAFETY: handed on to the allocator unchanged.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { self.0.realloc(block, layout, size) }
    }
}

#[global_allocator]
static HEAP: Heap = Heap(TalcCell::new(Manual));

/// Gives the heap its memory. Returns whether it was enough to begin with.
///
/// # Safety
/// `start..end` is RAM that nobody else uses from now on.
pub(crate) unsafe fn claim(start: usize, end: usize) -> bool {
    // SAFETY: by the promise made to this function.
    unsafe { HEAP.0.claim(start as *mut u8, end.saturating_sub(start)) }.is_some()
}

/// What the heap has.
pub(crate) fn memory() -> Memory {
    let counters = HEAP.0.counters();
    Memory { used: counters.allocated_bytes, free: counters.available_bytes }
}
