//! The clock of the protocol and of all that is measured here.

use crate::host::clock::nanos;
use crate::role::Moment;

/// The local clock: goes on while the process is stopped and while the host sleeps.
pub(super) fn now() -> Moment {
    Moment::from_nanos(nanos(libc::CLOCK_BOOTTIME))
}
