//! Which way the guest reads the counter: by an exit each time, or from a page that has it.
//!
//! The page changes at exits only, or the backup's guest would read something else. Between two exits that clock stands
//! still. A guest that does much with its devices has an exit every few dozen microseconds, reads its clock at
//! most of them, and has nothing to lose by it. One that computes has none for long, and would see time stand, then
//! jump; it reads its clock seldom, or it waits for it to move. So the page is there while exits are dense, and goes
//! with the first forced stop.
//!
//! All is decided at points, from virtual time and the guest's own exits, the same on both sides.

use crate::machine::time::VirtualTime;

/// So many exits that are not readings of the counter make a window.
const EXITS: u32 = 32;

/// The readings of the counter in a window that make a page worth its while.
const READINGS: u32 = EXITS / 4;

/// Nanoseconds from exit to exit, in the mean of a window, up to which the exits of a guest are dense.
const DENSE: u64 = 500_000;

/// The same, from which on they no longer are.
const SPARSE: u64 = 2_000_000;

/// A page that was there for less, in nanoseconds, was not worth its while: KVM builds page tables anew for it.
const SHORT: u64 = 1_000_000_000;

/// One dense window brings the page; where it did not stay for long, twice as many as the last time, so many times at most.
const MOST_DOUBLINGS: u32 = 6;

/// The volatile state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Reads {
    /// Whether the page is there.
    page: bool,
    /// When it came or went last.
    since: VirtualTime,
    /// The last exit, or the end of the wait for an interrupt that it began.
    last: VirtualTime,
    /// The window's exits that are not readings of the counter.
    exits: u32,
    /// The window's readings, by an exit each.
    readings: u32,
    /// The guest's own time in this window, in nanoseconds.
    ran: u64,
    /// Dense windows in a row.
    dense: u32,
    /// How many times in a row the page did not stay for long.
    short_stays: u32,
}

impl Reads {
    /// Whether the page is there.
    pub(super) const fn stands_still(&self) -> bool {
        self.page
    }

    /// An exit at `now`. `reads`: a reading of the counter.
    pub(super) fn exit(&mut self, now: VirtualTime, reads: bool) {
        self.ran += now.since(self.last);
        self.last = now;
        if reads {
            self.readings += 1;
            return;
        }
        self.exits += 1;
        if self.exits < EXITS {
            return;
        }
        let mean = self.ran / u64::from(EXITS);
        let worthwhile = mean <= DENSE && self.readings >= READINGS;
        (self.exits, self.readings, self.ran) = (0, 0, 0);
        if self.page {
            if mean > SPARSE {
                self.page_goes(now);
            }
            return;
        }
        self.dense = if worthwhile { self.dense + 1 } else { 0 };
        if self.dense >= 1 << self.short_stays {
            self.page_comes(now);
        }
    }

    /// The guest has waited for an interrupt, which is no time of its own.
    pub(super) fn wakes(&mut self, now: VirtualTime) {
        self.last = now;
    }

    /// The guest was stopped where it has no exit.
    pub(super) fn forced_stop(&mut self, now: VirtualTime) {
        if self.page {
            self.page_goes(now);
        }
    }

    fn page_comes(&mut self, now: VirtualTime) {
        (self.page, self.since, self.dense) = (true, now, 0);
    }

    fn page_goes(&mut self, now: VirtualTime) {
        let short = now.since(self.since) < SHORT;
        self.short_stays = if short { (self.short_stays + 1).min(MOST_DOUBLINGS) } else { 0 };
        (self.page, self.since, self.dense) = (false, now, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that has an exit of each kind every `step` nanoseconds of its own time.
    struct Guest {
        reads: Reads,
        now: u64,
    }

    impl Guest {
        fn new() -> Self {
            Self { reads: Reads::default(), now: 0 }
        }

        fn time(&self) -> VirtualTime {
            VirtualTime::from_nanos(self.now)
        }

        /// One window. Whether the page is there at its end.
        fn window(&mut self, step: u64) -> bool {
            for _ in 0..EXITS {
                self.now += step;
                if !self.reads.stands_still() {
                    self.reads.exit(self.time(), true);
                }
                self.reads.exit(self.time(), false);
            }
            self.reads.stands_still()
        }
    }

    #[test]
    fn the_page_is_there_while_exits_are_dense() {
        let mut guest = Guest::new();
        assert!(!guest.window(DENSE + 1), "sparse");
        assert!(guest.window(DENSE));
        assert!(guest.window(SPARSE), "as long as it is not much worse");
        assert!(!guest.window(SPARSE + 1));
        assert!(!guest.window(DENSE + 1));
    }

    #[test]
    fn waits_are_not_the_guests_time() {
        let mut guest = Guest::new();
        for _ in 0..EXITS {
            guest.now += 100_000_000;
            guest.reads.wakes(guest.time());
            for reads in [true, false] {
                guest.now += 10_000;
                guest.reads.exit(guest.time(), reads);
            }
        }
        assert!(guest.reads.stands_still());
    }

    #[test]
    fn a_guest_that_does_not_read_its_clock_gets_no_page() {
        let mut reads = Reads::default();
        for i in 0..u64::from(10 * EXITS) {
            reads.exit(VirtualTime::from_nanos(1000 * i), false);
        }
        assert!(!reads.stands_still());
    }

    #[test]
    fn a_forced_stop_ends_it_and_a_page_that_did_not_stay_comes_back_later() {
        let mut guest = Guest::new();
        for windows in [1, 2, 4, 8, 16, 32, 64, 64] {
            for window in 1..=windows {
                assert_eq!(guest.window(1000), window == windows, "{window} of {windows}");
            }
            guest.reads.forced_stop(guest.time());
            assert!(!guest.reads.stands_still());
        }
        for _ in 0..64 {
            guest.window(1000);
        }
        guest.now += SHORT;
        guest.reads.wakes(guest.time());
        guest.reads.forced_stop(guest.time());
        assert!(guest.window(1000), "it had stayed");
    }
}
