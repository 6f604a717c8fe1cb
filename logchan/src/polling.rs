//! Looking for what is to come before sleeping for it.
//!
//! A core without work sleeps, and to wake it takes some ten microseconds; in a virtual machine, whose host has to be asked for the core,
//! or out of a deep sleep, now and then some hundred. Log that comes then is acknowledged as much later. While log comes
//! often, a replay that has executed all of it looks for the next for a while instead, so that its core is awake. KVM
//! does the same for vCPUs that halt (Linux, Documentation/virt/kvm/halt-polling.rst).
//!
//! Whoever has waited longer than it would look has looked in vain. So a wait that took longer ends the looking, and a row of
//! waits that were shorter begins it again: a guest that idles, with its tick of 10 ms, costs its backup's core nothing.

use std::time::Duration;

/// Waits in a row that were short enough before anybody looks.
const ROW: u8 = 16;

/// Whether to look, by how long the last waits were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HaltPolling {
    limit: Duration,
    /// Waits in a row that were no longer than the limit.
    short: u8,
}

impl HaltPolling {
    /// Looks for as long as `limit`; zero: never.
    pub(crate) const fn new(limit: Duration) -> Self {
        Self { limit, short: 0 }
    }

    /// How long to look before the sleep.
    pub(crate) const fn window(&self) -> Duration {
        if self.short < ROW { Duration::ZERO } else { self.limit }
    }

    /// A wait ended after so long, or there was nothing to wait for.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.short = if time > self.limit { 0 } else { (self.short + 1).min(ROW) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(1);
    const LONGER: Duration = Duration::from_micros(1001);

    #[test]
    fn looks_behind_a_row_of_short_waits_until_one_is_long() {
        let mut polling = HaltPolling::new(LIMIT);
        for _ in 0..3 {
            for _ in 0..ROW {
                assert_eq!(polling.window(), Duration::ZERO);
                polling.waited(LIMIT);
            }
            for _ in 0..1000 {
                assert_eq!(polling.window(), LIMIT);
                polling.waited(Duration::ZERO);
            }
            polling.waited(LONGER);
        }
    }

    #[test]
    fn an_idle_guest_is_not_looked_for() {
        let mut polling = HaltPolling::new(LIMIT);
        // A tick, and some frames that come with it.
        for frame in 0..10_000 {
            polling.waited(if frame % 5 == 0 {
                Duration::from_millis(10)
            } else {
                Duration::from_micros(50)
            });
            assert_eq!(polling.window(), Duration::ZERO);
        }
    }

    #[test]
    fn a_limit_of_nothing_never_looks() {
        let mut polling = HaltPolling::new(Duration::ZERO);
        (0..100).for_each(|_| polling.waited(Duration::ZERO));
        assert_eq!(polling.window(), Duration::ZERO);
    }
}
