//! How often forced stops may be made.
//!
//! A stop costs: registers and pages are captured, packed and sent, and the first write to each page after it
//! is a fault. On hardware that is well under a millisecond. On a slow machine (KVM in software emulation, a
//! guest that writes much memory) it can be longer than the bound, and a guest that is stopped again as soon
//! as it goes on computes nothing. So the guest always computes some multiple of what its last stop took
//! before the next one; the bound is kept where the machine can keep it. That wait has a limit, for a guest
//! that writes so fast that each stop would be larger than the last.

/// Times of the last forced stop, in nanoseconds of the vCPU thread's CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopPace {
    /// When a stop began that is not over yet.
    began: Option<u64>,
    /// When the guest went on after the last one.
    ended: u64,
    /// How long the last one took.
    cost: u64,
}

impl StopPace {
    /// The guest computes so many times as long as a stop took before the next: stops take a thirteenth of the time
    /// at most. A stop of 0.4 ms, more than hardware needs, still leaves room for one every 5 ms.
    pub const COMPUTES: u64 = 12;

    /// Whether the guest, which computes, may be stopped at `cpu`: in any case after `limit` nanoseconds.
    #[must_use]
    pub fn may_stop(&self, cpu: u64, limit: u64) -> bool {
        cpu.saturating_sub(self.ended) >= self.cost.saturating_mul(Self::COMPUTES).min(limit)
    }

    /// A stop begins.
    pub const fn begins(&mut self, cpu: u64) {
        self.began = Some(cpu);
    }

    /// Whether a stop has begun and the guest has not gone on yet.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.began.is_some()
    }

    /// The guest goes on after a stop.
    pub const fn ends(&mut self, cpu: u64) {
        if let Some(began) = self.began.take() {
            self.cost = cpu.saturating_sub(began);
            self.ended = cpu;
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

    #[test]
    fn a_guest_computes_a_multiple_of_what_its_stop_took() {
        let mut pace = StopPace::default();
        let limit = 1000;
        assert!(pace.may_stop(0, limit), "the first may come at once");
        pace.begins(100);
        assert!(pace.is_open());
        pace.ends(130);
        assert!(!pace.is_open());
        assert_eq!(pace.cost(), 30);
        assert!(!pace.may_stop(130 + 30 * StopPace::COMPUTES - 1, limit));
        assert!(pace.may_stop(130 + 7, 7), "the limit");
        assert!(pace.may_stop(130 + 30 * StopPace::COMPUTES, limit));
        // An entry that follows no stop changes nothing.
        pace.ends(1000);
        assert_eq!(pace.cost(), 30);
        // A cheaper one brings the next nearer.
        pace.begins(2000);
        pace.ends(2001);
        assert!(pace.may_stop(2001 + StopPace::COMPUTES, limit));
    }
}
