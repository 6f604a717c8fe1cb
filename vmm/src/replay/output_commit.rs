//! Which batch of the log an output waits for.
//!
//! The paper's Output Rule (section 2.2) makes each output wait for the log entry of the operation that
//! made it, because a backup that goes live just before could take an interrupt first, and then never make
//! that output. Here an interrupt can come only at a point. So when the log covers point `p` and no entry
//! lies between `p` and an output at `q`, the output is a function of what the backup already has, on one
//! condition: a backup that goes live at `p` takes nothing of its own before it has come as far.
//!
//! - It promises that for the next `STRETCH` points, or until the guest idles, which only an input ends;
//!   and not to force a stop for `PATIENCE` kicks.
//! - The primary lets no output rely on more than `STRETCH` points, nor on a stretch in which the guest
//!   was kicked twice without an exit between.
//!
//! A reply then costs no longer the channel's round trip after the guest has computed it, but only what is
//! left of the round trip by then.

/// Points between the end of the log and an output that may still rely on it.
pub const STRETCH: u64 = 16;

/// Kicks (each half of the recorder's bound apart) without an exit between, after which a machine that took
/// over forces a stop all the same. No output relies on a stretch with two: the hosts' speeds would have to
/// differ by this half for an output to be lost.
pub const PATIENCE: u32 = 40;

/// Whether an output made at `point` may leave once the log up to `base` is acknowledged. `entries`: some lie
/// behind `base`; `kicked`: the guest was kicked twice without an exit since.
#[must_use]
pub const fn may_rely(point: u64, base: u64, entries: bool, kicked: bool) -> bool {
    !entries && is_near(point, base, kicked)
}

/// Whether `base` is near enough for an output made at `point`, had it no entries behind it.
#[must_use]
pub const fn is_near(point: u64, base: u64, kicked: bool) -> bool {
    !kicked && point - base <= STRETCH
}

/// Outputs that gain from logging inputs ahead of them, less those that do not: a guest whose outputs come
/// with entries of their own would only pay for more batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead(u8);

impl Ahead {
    const MOST: u8 = 8;

    /// The guest made outputs; `gains`: they rely on the log as it was before the guest ran.
    pub const fn learn(&mut self, gains: bool) {
        self.0 = match (gains, self.0) {
            (true, Self::MOST) => Self::MOST,
            (true, score) => score + 1,
            (false, score) => score / 2,
        };
    }

    /// Whether inputs should be sent before the guest runs.
    #[must_use]
    pub const fn pays(self) -> bool {
        self.0 >= Self::MOST / 2
    }
}

/// A machine that took over, while it owes the outputs that its predecessor may have let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debt {
    /// The last point at which nothing may be applied.
    until: u64,
    kicks: u32,
}

impl Debt {
    /// The log ended at `point` or right behind it.
    #[must_use]
    pub const fn from(point: u64) -> Self {
        Self { until: point + STRETCH, kicks: 0 }
    }

    /// Whether inputs may not be applied at `point`.
    #[must_use]
    pub const fn binds(&self, point: u64) -> bool {
        point <= self.until
    }

    /// The guest was kicked a second time at one point. Whether that is reason enough to stop it.
    pub const fn kick(&mut self) -> bool {
        self.kicks += 1;
        self.kicks >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_served_ahead_once_its_outputs_gain_from_it_and_not_for_long_after() {
        let mut ahead = Ahead::default();
        assert!(!ahead.pays());
        for _ in 0..4 {
            ahead.learn(true);
        }
        assert!(ahead.pays());
        ahead.learn(false);
        assert!(!ahead.pays());
        for _ in 0..100 {
            ahead.learn(true);
        }
        ahead.learn(false);
        assert!(ahead.pays(), "one output in a hundred is no reason to change");
    }

    #[test]
    fn a_debt_ends_after_the_stretch_and_stops_wait_for_patience() {
        let mut debt = Debt::from(100);
        assert!(debt.binds(101) && debt.binds(100 + STRETCH) && !debt.binds(101 + STRETCH));
        let stops = (0..PATIENCE).filter(|_| debt.kick()).count();
        assert_eq!(stops, 1);
    }
}
