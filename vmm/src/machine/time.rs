//! Time as the guest sees it.
//!
//! Devices compute from `VirtualTime` only. It advances when an input says so, never by itself.

use std::ops::Add;

/// Nanoseconds since the machine was powered on. Monotonic: it survives a failover without a jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualTime(u64);

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl VirtualTime {
    /// The moment of power-on.
    pub const ZERO: Self = Self(0);

    /// A point in time, in nanoseconds since power-on.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since power-on.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// How many whole periods of a clock of `hertz` have passed since power-on, modulo 2⁶⁴. Exact for all `u64`
    /// inputs, so that two reads never disagree by rounding.
    #[must_use]
    pub const fn ticks_of(self, hertz: u64) -> u64 {
        let (seconds, nanos) = (self.0 / NANOS_PER_SECOND, self.0 % NANOS_PER_SECOND);
        // Up to 18 GHz 64 bits do, and a division of 128 is a loop.
        let rest = match nanos.checked_mul(hertz) {
            Some(product) => product / NANOS_PER_SECOND,
            None => (nanos as u128 * hertz as u128 / NANOS_PER_SECOND as u128) as u64,
        };
        seconds.wrapping_mul(hertz).wrapping_add(rest)
    }

    /// The earliest time at which a clock of `hertz` has counted `ticks` since power-on.
    #[must_use]
    pub const fn at_tick(ticks: u64, hertz: u64) -> Self {
        Self((ticks as u128 * NANOS_PER_SECOND as u128).div_ceil(hertz as u128) as u64)
    }
}

impl Add<u64> for VirtualTime {
    type Output = Self;

    fn add(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ticks_are_exact(nanos: u64, hertz: u64) {
            let exact = u128::from(nanos) * u128::from(hertz) / u128::from(NANOS_PER_SECOND);
            prop_assert_eq!(VirtualTime::from_nanos(nanos).ticks_of(hertz), exact as u64);
        }

        #[test]
        fn at_tick_is_the_first_moment_that_counts_so_many(ticks in 0u64..1 << 40, hertz in 1u64..4_000_000_000) {
            let at = VirtualTime::at_tick(ticks, hertz);
            prop_assert!(at.ticks_of(hertz) >= ticks);
            if at > VirtualTime::ZERO {
                prop_assert!(VirtualTime::from_nanos(at.as_nanos() - 1).ticks_of(hertz) < ticks);
            }
        }
    }
}
