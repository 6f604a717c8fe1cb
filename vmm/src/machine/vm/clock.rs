//! When the guest reads a clock, and how.

use super::{Exit, Machine};

impl Machine {
    /// Whether emulating this exit reads virtual time.
    #[must_use]
    pub fn reads_clock(&self, exit: &Exit) -> bool {
        self.board.reads_clock(exit)
    }

    /// Whether the end of the present idle wait tells the guest the time.
    #[must_use]
    pub fn wake_reads_clock(&self) -> bool {
        self.idle_read.is_some() || self.clock_stands_still()
    }

    /// Whether the guest reads its clock without an exit, and time should be fresh at each exit.
    #[must_use]
    pub fn clock_stands_still(&self) -> bool {
        self.board.clock_stands_still()
    }

    /// Whether registers at this exit, which is not emulated yet, may hold what the log knows nothing of.
    #[must_use]
    pub fn exposes_tsc(&self, exit: &Exit) -> bool {
        self.board.exposes_tsc(exit)
    }

    /// Whether that was so at the last exit: where there is a log, the guest must not go on without a forced stop.
    #[must_use]
    pub fn has_exposed_tsc(&self) -> bool {
        self.board.has_exposed_tsc()
    }
}
