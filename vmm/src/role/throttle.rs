//! Slows the primary, gently, while the backup lags.
//!
//! Proportional: none at the bound, the most at [`FULL_AT`] times the bound. With hysteresis: it starts
//! above the bound and ends below half of it, and a level changes only by [`STEP`] or more, so that the host
//! is not told of every ack.

use super::timing::Timing;

/// The share of time that a vCPU is paused for, in per cent: 0 to [`MOST`].
pub type Level = u8;

/// The most that a primary is slowed.
pub const MOST: Level = 80;

/// The lag, in multiples of the bound, at which [`MOST`] is reached.
pub const FULL_AT: u64 = 5;

/// The smallest change of level, but for the last to zero.
pub const STEP: Level = 4;

/// The controller: lag in, level out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Throttle {
    bound: u64,
    entries: u64,
    level: Level,
}

impl Throttle {
    /// Not slowed.
    #[must_use]
    pub const fn new(timing: &Timing) -> Self {
        Self { bound: timing.lag_bound, entries: timing.lag_entries, level: 0 }
    }

    /// The level in force.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The backup reported its lag, in nanoseconds and in entries. Says the new level if it changed.
    pub fn on_lag(&mut self, lag: u64, entries: u64) -> Option<Level> {
        let by_time = share(lag, self.bound);
        let by_entries = share(entries, self.entries);
        let wanted = by_time.max(by_entries);
        let below_half = lag < self.bound / 2 && entries < self.entries.div_ceil(2);
        let level = match wanted {
            0 if below_half => 0,
            // Between half the bound and the bound: keep a little pressure if there was any.
            0 => self.level.min(STEP),
            wanted if wanted.abs_diff(self.level) < STEP => self.level,
            wanted => wanted,
        };
        (level != std::mem::replace(&mut self.level, level)).then_some(level)
    }
}

/// The level for one measure: 0 up to the bound, then rising in proportion.
fn share(lag: u64, bound: u64) -> Level {
    let over = lag.saturating_sub(bound).min(bound.saturating_mul(FULL_AT - 1));
    (u128::from(over) * u128::from(MOST) / (u128::from(bound.max(1)) * u128::from(FULL_AT - 1))) as Level
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::moment::MILLISECOND;
    use proptest::prelude::*;

    #[test]
    fn starts_above_the_bound_and_ends_below_half() {
        let bound = Timing::default().lag_bound;
        let mut throttle = Throttle::new(&Timing::default());
        assert_eq!(throttle.on_lag(bound, 0), None);
        assert_eq!(throttle.on_lag(3 * bound, 0), Some(40));
        assert_eq!(throttle.on_lag(3 * bound + MILLISECOND, 0), None, "too small a change");
        assert_eq!(throttle.on_lag(bound, 0), Some(STEP));
        assert_eq!(throttle.on_lag(bound / 2, 0), None);
        assert_eq!(throttle.on_lag(bound / 2 - 1, 0), Some(0));
        assert_eq!(throttle.on_lag(0, u64::MAX), Some(MOST));
    }

    /// A primary that makes 1.5 times the work that the backup can do settles at a bounded lag.
    #[test]
    fn a_slow_backup_is_held_to_a_bounded_lag() {
        let mut throttle = Throttle::new(&Timing::default());
        let mut lag = 0i64;
        for _ in 0..100_000 {
            let made = 15_000 * (100 - i64::from(throttle.level())) / 100;
            lag = (lag + made * 100 - 10_000 * 100).max(0);
            throttle.on_lag(lag as u64, 0);
        }
        assert!((lag as u64) < 4 * Timing::default().lag_bound, "{lag}");
        assert!(throttle.level() > 20, "{}", throttle.level());
    }

    proptest! {
        #[test]
        fn never_above_the_most(lags in proptest::collection::vec(any::<(u64, u64)>(), 1..50)) {
            let mut throttle = Throttle::new(&Timing::default());
            for (lag, entries) in lags {
                if let Some(level) = throttle.on_lag(lag, entries) {
                    prop_assert!(level <= MOST);
                    prop_assert_eq!(level, throttle.level());
                }
            }
        }
    }
}
