//! Host time as virtual time. The one place where a machine's time comes from.

use std::time::Instant;

use crate::machine::time::VirtualTime;

/// Maps the host's monotonic clock to virtual time.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    origin: Instant,
    base: VirtualTime,
}

impl HostClock {
    /// A clock that shows `base` now and goes on from there: at power-on, and at go-live, where the
    /// guest's time continues from the last logged reading.
    #[must_use]
    pub fn continuing(base: VirtualTime) -> Self {
        Self { origin: Instant::now(), base }
    }

    /// Virtual time now.
    #[must_use]
    pub fn now(&self) -> VirtualTime {
        self.base + self.origin.elapsed().as_nanos() as u64
    }
}
