//! How often forced stops may be made.
//!
//! A stop costs: registers and pages are captured, packed and sent, and the first write to each page after it
//! is a fault; where KVM keeps shadow page tables, so is the first access to each page, since the stop drops them. On
//! hardware the stop itself is well under a millisecond. On a slow machine (KVM in software emulation, a
//! guest that writes much memory) it can be longer than the bound, and a guest that is stopped again as soon
//! as it goes on computes nothing. So the guest always computes some multiple of what its last stop took
//! before the next one; the bound is kept where the machine can keep it. That wait has a limit, for a guest
//! that writes so fast that each stop would be larger than the last.
//!
//! The faults behind a stop pass in the kernel, as part of the guest's own time. Where they come by the thousand, behind a
//! dropped shadow, time in the kernel is a cost of the stop, and only time outside is the guest's. Elsewhere it is left
//! alone: many kernels know it by samples only.

/// CPU time of the vCPU's thread, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// All of it.
    pub all: u64,
    /// Of it, time in the kernel but not in the guest. May be known by samples only.
    pub kernel: u64,
}

/// What bounds the wait for a stop, in nanoseconds of CPU time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long the guest computes at most.
    pub longest: u64,
    /// Whether a stop drops KVM's shadow page tables.
    pub shadowed: bool,
}

/// Times of the last forced stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopPace {
    /// When a stop began that is not over yet.
    began: Option<u64>,
    /// When the guest went on after the last one.
    ended: Spent,
    /// How long the last one took.
    cost: u64,
}

impl StopPace {
    /// The guest computes so many times as long as a stop took before the next: stops take 3 per cent of the time at
    /// most, and what they cost behind, in faults, about half as much again. A stop of 0.15 ms
    /// still leaves room for one every 5 ms.
    pub const COMPUTES: u64 = 32;

    /// Whether the guest, which computes, may be stopped after `spent`.
    #[must_use]
    pub fn may_stop(&self, spent: Spent, limits: Limits) -> bool {
        let all = spent.all.saturating_sub(self.ended.all);
        let kernel = if limits.shadowed { spent.kernel.saturating_sub(self.ended.kernel) } else { 0 };
        let wanted = self.cost.saturating_add(kernel).saturating_mul(Self::COMPUTES);
        all.saturating_sub(kernel) >= wanted.min(limits.longest)
    }

    /// A stop begins, after so much CPU time.
    pub const fn begins(&mut self, all: u64) {
        self.began = Some(all);
    }

    /// Whether a stop has begun and the guest has not gone on yet.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.began.is_some()
    }

    /// The guest goes on after a stop.
    pub const fn ends(&mut self, spent: Spent) {
        if let Some(began) = self.began.take() {
            self.cost = spent.all.saturating_sub(began);
            self.ended = spent;
        }
    }

    /// What the last stop took, in nanoseconds of CPU time; 0 before the first.
    #[must_use]
    pub const fn cost(&self) -> u64 {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { longest: 10_000, shadowed: false };
    const SHADOWED: Limits = Limits { shadowed: true, ..LIMITS };

    const fn spent(all: u64, kernel: u64) -> Spent {
        Spent { all, kernel }
    }

    /// A pace after a stop that took `cost` and ended at 100.
    fn after(cost: u64) -> StopPace {
        let mut pace = StopPace::default();
        pace.begins(100 - cost);
        assert!(pace.is_open());
        pace.ends(spent(100, 7));
        assert!(!pace.is_open());
        assert_eq!(pace.cost(), cost);
        pace
    }

    #[test]
    fn a_guest_computes_a_multiple_of_what_its_stop_took() {
        assert!(StopPace::default().may_stop(spent(0, 0), LIMITS), "the first may come at once");
        let mut pace = after(30);
        assert!(!pace.may_stop(spent(100 + 30 * StopPace::COMPUTES - 1, 200), LIMITS));
        assert!(pace.may_stop(spent(100 + 30 * StopPace::COMPUTES, 200), LIMITS), "whatever the kernel did");
        assert!(after(90).may_stop(spent(100 + 10, 200), Limits { longest: 10, ..LIMITS }), "the limit");
        // An entry that follows no stop changes nothing.
        pace.ends(spent(1000, 0));
        assert_eq!(pace.cost(), 30);
        // A cheaper one brings the next nearer.
        pace.begins(2000);
        pace.ends(spent(2001, 0));
        assert!(pace.may_stop(spent(2001 + StopPace::COMPUTES, 0), LIMITS));
    }

    #[test]
    fn where_a_stop_drops_the_shadow_its_faults_count_too_and_the_wait_has_a_limit() {
        let pace = after(80);
        let wanted = 80 * StopPace::COMPUTES;
        assert!(pace.may_stop(spent(100 + wanted, 7), SHADOWED));
        assert!(!pace.may_stop(spent(100 + wanted, 107), SHADOWED));
        let wanted = (80 + 100) * StopPace::COMPUTES;
        assert!(!pace.may_stop(spent(100 + 100 + wanted - 1, 107), SHADOWED));
        assert!(pace.may_stop(spent(100 + 100 + wanted, 107), SHADOWED));
        assert!(!pace.may_stop(spent(100 + 5000 + 9999, 5007), SHADOWED));
        assert!(
            pace.may_stop(spent(100 + 5000 + 10_000, 5007), SHADOWED),
            "the guest's own time has a limit"
        );
    }
}
