//! Host time as virtual time. The one place where a machine's time comes from.

use crate::machine::time::{NANOS_PER_SECOND, VirtualTime};

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
        Self { origin: monotonic(), base }
    }

    /// Virtual time now.
    #[must_use]
    pub fn now(&self) -> VirtualTime {
        self.base + monotonic().saturating_sub(self.origin)
    }
}

/// The host's monotonic clock, in nanoseconds. `Instant` takes twice as long to come to a number, and this is read at every
/// exit.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * NANOS_PER_SECOND + time.tv_nsec as u64
}
