//! Interrupts, as ring 3 sees them: each line's handler adds one to its counter.

use core::sync::atomic::{AtomicU32, Ordering};

/// How often each line of the interrupt controllers has fired. Written by the stubs in ring 0.
pub(super) static COUNTERS: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];

/// The line of the 8254.
pub(crate) const TIMER: u8 = 0;

/// How often a line has fired since a moment.
pub(crate) struct Line {
    line: usize,
    seen: u32,
}

impl Line {
    /// From now on.
    pub(crate) fn new(line: u8) -> Self {
        let line = usize::from(line) % COUNTERS.len();
        Self { line, seen: COUNTERS[line].load(Ordering::Relaxed) }
    }

    /// How often it has fired.
    pub(crate) fn fired(&self) -> u32 {
        COUNTERS[self.line].load(Ordering::Relaxed).wrapping_sub(self.seen)
    }

    /// Counts from now on.
    pub(crate) fn forget(&mut self) {
        self.seen = COUNTERS[self.line].load(Ordering::Relaxed);
    }
}
