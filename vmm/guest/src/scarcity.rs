//! Allocation that fails when a test says so: what allocates without being able to fail aborts the test.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

std::thread_local! {
    static BUDGET: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Scarce;

fn take(bytes: usize) -> bool {
    BUDGET.with(|budget| match budget.get() {
        None => true,
        Some(left) if left < bytes => false,
        Some(left) => {
            budget.set(Some(left - bytes));
            true
        }
    })
}

fn give(bytes: usize) {
    BUDGET.with(|budget| budget.set(budget.get().map(|left| left.saturating_add(bytes))));
}

// SAFETY: either the system's allocator or null.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return core::ptr::null_mut();
        }
        // SAFETY: the caller's promises are the ones asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static SCARCE: Scarce = Scarce;

/// Runs `body` on this thread with so many bytes to allocate, and no more.
pub(crate) fn with_budget<T>(bytes: usize, body: impl FnOnce() -> T) -> T {
    BUDGET.set(Some(bytes));
    let result = body();
    BUDGET.set(None);
    result
}
