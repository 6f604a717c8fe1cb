//! The lease: the primary's right to release output, and the promise of the backup that backs it. Why the
//! two fit together is said in the module text of [`super`].

use super::moment::Moment;
use super::timing::Timing;

/// The primary's half: output may leave until `stamp + length`, for the latest own stamp that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    length: u64,
    until: Moment,
}

impl Lease {
    /// A lease that has not been granted yet.
    #[must_use]
    pub const fn new(timing: &Timing) -> Self {
        Self { length: timing.lease(), until: Moment::ZERO }
    }

    /// The peer echoed `stamp`, a moment of this side's own clock. Order and repetition do not matter. A
    /// stamp from the future was never sent by this side and grants nothing.
    pub fn on_echo(&mut self, now: Moment, stamp: Moment) {
        if stamp <= now {
            self.until = self.until.max(stamp + self.length);
        }
    }

    /// May output leave at `now`?
    #[must_use]
    pub fn valid(&self, now: Moment) -> bool {
        now < self.until
    }

    /// The first moment at which output may no longer leave.
    #[must_use]
    pub const fn until(&self) -> Moment {
        self.until
    }
}

/// The backup's half: not live before `silence bound` after the receipt of the newest stamp it may have
/// echoed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    bound: u64,
    newest: Option<Moment>,
    not_before: Moment,
}

impl Promise {
    /// Nothing promised yet.
    #[must_use]
    pub const fn new(timing: &Timing) -> Self {
        Self { bound: timing.silence(), newest: None, not_before: Moment::ZERO }
    }

    /// A message of the primary with its `stamp` arrived. True if the stamp was news: worth an echo.
    pub fn on_stamp(&mut self, now: Moment, stamp: Moment) -> bool {
        let news = self.newest.is_none_or(|newest| stamp > newest);
        if news {
            self.newest = Some(stamp);
            self.not_before = self.not_before.max(now + self.bound);
        }
        news
    }

    /// What heartbeats and acks echo: the newest stamp of the primary, if one came.
    #[must_use]
    pub const fn echo(&self) -> Option<Moment> {
        self.newest
    }

    /// The earliest moment at which this side may be live. It stands once the side stops echoing.
    #[must_use]
    pub const fn not_before(&self) -> Moment {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    #[test]
    fn an_echo_from_the_future_grants_nothing() {
        let mut lease = Lease::new(&Timing::default());
        lease.on_echo(at(100), at(101));
        assert!(!lease.valid(at(100)));
        lease.on_echo(at(100), at(100));
        assert!(lease.valid(at(100)));
    }

    proptest! {
        /// Any stamps, delays, losses and orders: with the clocks at their worst, the lease has ended by the
        /// slack before the promise has.
        #[test]
        fn the_lease_ends_before_the_promise(
            sends in proptest::collection::vec((0u64..20_000_000, 0u64..80_000_000, any::<bool>(), 0u64..80_000_000), 1..40),
            permille in 0u64..=10, fast_primary in any::<bool>(), offset in 0u64..1 << 40,
        ) {
            let timing = Timing::default();
            // True time is the backup's; the primary's clock runs slower or faster by up to 1 %.
            let primary = |real: u64| {
                let skew = real / 1000 * permille;
                at(offset + if fast_primary { real + skew } else { real - skew })
            };
            let mut lease = Lease::new(&timing);
            let mut promise = Promise::new(&timing);
            let mut real = 1_000_000_000;
            let mut arrivals = Vec::new();
            for (gap, delay, lost, back) in sends {
                real += gap;
                if !lost {
                    arrivals.push((real + delay, primary(real), back));
                }
            }
            arrivals.sort_unstable();
            let mut echoes = Vec::new();
            for (arrival, stamp, back) in arrivals {
                promise.on_stamp(at(arrival), stamp);
                echoes.push((arrival + back, promise.echo().unwrap()));
            }
            for (arrival, stamp) in echoes {
                lease.on_echo(primary(arrival), stamp);
            }
            // The backup's earliest go-live, less the slack, on the primary's clock.
            let live = promise.not_before().as_nanos();
            if live > 0 {
                prop_assert!(!lease.valid(primary(live - timing.slack())));
            }
        }
    }
}
