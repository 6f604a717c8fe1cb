//! The kernel's clocks, as numbers.

use crate::machine::time::NANOS_PER_SECOND;

/// The local clock, in nanoseconds: of the protocol, of leases, and of all that a pair measures. It goes on while the process is stopped and
/// while the host sleeps.
pub(super) fn local() -> u64 {
    nanos(libc::CLOCK_BOOTTIME)
}

/// What `clock`, one that every kernel has, shows: in nanoseconds. `Instant` takes twice as long to come to a number, and this
/// is read at every exit.
pub(super) fn nanos(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for the call, which cannot fail for such a clock.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * NANOS_PER_SECOND + time.tv_nsec as u64
}
