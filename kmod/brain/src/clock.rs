// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! The virtual TSC: the host's, scaled to the guest's frequency and moved so that it goes on where it stood.
//!
//! A guest keeps its frequency for life, on whatever host it runs. At a failover the new host starts the clock
//! at the last value that the guest has read: it never goes back, and an outage is time that never was.

/// Bits behind the point of the multiplier.
const FRACTION: u32 = 32;

/// The virtual TSC of one vCPU on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualTsc {
    /// Host TSC at which the clock was set.
    host: u64,
    /// Value at that moment.
    base: u64,
    /// Guest ticks per host tick, with [`FRACTION`] bits behind the point.
    multiplier: u64,
    /// Low bits that always read zero.
    quantum: u32,
    /// The last value handed out.
    last: u64,
}

impl VirtualTsc {
    /// The largest quantum, in bits.
    pub const MAX_QUANTUM: u32 = 20;

    /// A clock of `guest_khz` on a host of `host_khz` that reads `value` when the host's TSC is `host`. Its
    /// readings are multiples of 2^`quantum`: a trapped read takes longer than that, and bits that nobody can
    /// use need not be logged. `None` for a frequency of zero, one that is 2^16 times the other or more, or
    /// too large a quantum.
    #[must_use]
    pub const fn new(guest_khz: u32, host_khz: u32, quantum: u32, host: u64, value: u64) -> Option<Self> {
        if guest_khz == 0 || host_khz == 0 || quantum > Self::MAX_QUANTUM {
            return None;
        }
        let multiplier = ((guest_khz as u64) << FRACTION) / host_khz as u64;
        if multiplier >> (FRACTION + 16) != 0 || multiplier >> (FRACTION - 16) == 0 {
            return None;
        }
        Some(Self { host, base: value, multiplier, quantum, last: value })
    }

    /// The reading when the host's TSC is `host`. Never less than an earlier one, even if the host's TSC
    /// steps back (CPUs whose counters disagree).
    pub const fn read(&mut self, host: u64) -> u64 {
        let elapsed = host.wrapping_sub(self.host);
        // A step back to before the base looks like 2^63 and more: no time has passed, then.
        let elapsed = if elapsed >> 63 == 0 { elapsed } else { 0 };
        let ticks = ((elapsed as u128 * self.multiplier as u128) >> FRACTION) as u64;
        let value = self.base.wrapping_add(ticks) >> self.quantum << self.quantum;
        if value > self.last {
            self.last = value;
        }
        self.last
    }

    /// The last value handed out or replayed.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// A value that the guest has read from the log.
    pub const fn replayed(&mut self, value: u64) {
        if value > self.last {
            self.last = value;
        }
    }

    /// Goes on from the last value, at the moment `host`. For the end of a replay.
    pub const fn resume(&mut self, host: u64) {
        self.host = host;
        self.base = self.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn impossible_frequencies_are_refused() {
        for (guest, host) in [(0, 1), (1, 0), (u32::MAX, 1), (1, u32::MAX), (1 << 16, 1)] {
            assert_eq!(VirtualTsc::new(guest, host, 0, 0, 0), None, "{guest} kHz on {host} kHz");
        }
        assert_eq!(VirtualTsc::new(1, 1, 21, 0, 0), None);
    }

    #[test]
    fn a_second_is_a_second_on_hosts_of_any_frequency() {
        for host_khz in [999_999, 1_000_000, 2_592_965, 5_700_000] {
            let mut clock = VirtualTsc::new(1_000_000, host_khz, 0, 77, 1_000).unwrap();
            let second = clock.read(77 + u64::from(host_khz) * 1000) - 1_000;
            assert!(second.abs_diff(1_000_000_000) <= 2, "{second} on {host_khz} kHz");
        }
    }

    #[test]
    fn a_year_does_not_overflow() {
        let mut clock = VirtualTsc::new(1_000_000, 4_000_000, 4, 0, 0).unwrap();
        let year = 365 * 86_400;
        let read = clock.read(year * 4_000_000_000);
        assert!(read.abs_diff(year * 1_000_000_000) < 1_000_000, "{read}");
    }

    proptest! {
        #[test]
        fn it_never_goes_back_and_is_a_multiple_of_its_quantum(
            guest in 500_000u32..6_000_000, host in 500_000u32..6_000_000, quantum in 0u32..8,
            start: u64, value in 0u64..1 << 50, steps in proptest::collection::vec(-1000i64..1_000_000_000, 1..50),
        ) {
            let value = value >> quantum << quantum;
            let mut clock = VirtualTsc::new(guest, host, quantum, start, value).unwrap();
            let (mut now, mut last) = (start, value);
            for step in steps {
                now = now.wrapping_add_signed(step);
                let read = clock.read(now);
                prop_assert!(read >= last);
                prop_assert_eq!(read % (1 << quantum), 0);
                last = read;
            }
        }

        #[test]
        fn a_failover_continues_from_the_last_value_read(
            value in 0u64..1 << 50, reads in proptest::collection::vec(0u64..1 << 50, 1..20), host: u64,
            later in 0u64..1 << 40,
        ) {
            let mut clock = VirtualTsc::new(1_000_000, 2_000_000, 0, 0, value).unwrap();
            for read in &reads { clock.replayed(*read); }
            let last = reads.iter().copied().max().unwrap().max(value);
            prop_assert_eq!(clock.last(), last);
            clock.resume(host);
            prop_assert_eq!(clock.read(host), last);
            let ticks = clock.read(host.wrapping_add(later)) - last;
            prop_assert!(ticks.abs_diff(later / 2) <= 1);
        }
    }
}
