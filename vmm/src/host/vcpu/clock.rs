//! Host time as virtual time. The one place where a machine's time comes from.

use crate::host::clock::nanos;
use crate::machine::time::VirtualTime;

/// Maps the host's monotonic clock to virtual time.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    /// What the host's clock showed at `base`, in nanoseconds.
    origin: u64,
    base: VirtualTime,
}

impl HostClock {
    /// A clock that shows `base` now and goes on from there: at power-on, and at go-live, where the
    /// guest's time continues from the last logged reading.
    #[must_use]
    pub fn continuing(base: VirtualTime) -> Self {
        Self { origin: nanos(libc::CLOCK_MONOTONIC), base }
    }

    /// Virtual time now.
    #[must_use]
    pub fn now(&self) -> VirtualTime {
        self.base + nanos(libc::CLOCK_MONOTONIC).saturating_sub(self.origin)
    }
}
