//! A point on one host's monotonic clock.

use std::ops::Add;

/// Nanoseconds of the local monotonic clock.
///
/// Two sides' moments have nothing to do with each other but their rate, which is assumed equal within one
/// per cent. The clock must go on while the process is stopped and while the host sleeps: on Linux that is
/// `CLOCK_BOOTTIME`, since `CLOCK_MONOTONIC` stands still in suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

/// Nanoseconds in a millisecond.
pub const MILLISECOND: u64 = 1_000_000;

impl Moment {
    /// The earliest moment there is.
    pub const ZERO: Self = Self(0);

    /// The moment at which the clock shows `nanos` nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// What the clock shows, in nanoseconds.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Moment {
    type Output = Self;

    fn add(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}
