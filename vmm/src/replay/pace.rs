//! How long inputs and log entries wait.

/// Time limits of a recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The longest that an input waits for an exit before the guest is stopped, in nanoseconds.
    pub bound: u64,
    /// How far virtual time may lie behind the clock when the guest reads it, in nanoseconds. Each
    /// closer reading costs a log entry.
    pub quantum: u64,
    /// The longest that entries wait for company, in nanoseconds, when no output depends on them.
    pub coalesce: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bound: 5_000_000, quantum: 10_000, coalesce: 1_000_000 }
    }
}
