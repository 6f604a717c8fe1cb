//! The clock of the protocol and of all that is measured here.

use crate::host::clock::local;
use crate::role::Moment;

/// The local clock.
pub(super) fn now() -> Moment {
    Moment::from_nanos(local())
}
