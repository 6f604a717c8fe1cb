//! Whether the guest is spared exits of one kind, because it has enough of others.
//!
//! Some exits only tell, or ask, what could be told or asked at the next exit as well. A guest that does much with its
//! devices has one every few dozen microseconds, and loses nothing by waiting for it. One that computes has none for long,
//! and would. So exits are spared while the others are dense, and no longer after the first forced stop.
//!
//! All is decided at points, from virtual time and the guest's own exits, the same on both sides.

use super::time::VirtualTime;

/// So many exits that cannot be spared make a window.
pub const WINDOW: u32 = 32;

/// A stay of less, in nanoseconds, was not worth its while.
const SHORT: u64 = 1_000_000_000;

/// One good window is enough to begin; after a stay that was short it takes twice as many as the last time, so many times at most.
const MOST_DOUBLINGS: u32 = 6;

/// The guest's last [`WINDOW`] exits that cannot be spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Whether exits were spared in it.
    pub spared: bool,
    /// The guest's own time from one to the next, in the mean, in nanoseconds.
    pub gap: u64,
    /// Exits among them that could have been spared.
    pub could_be_spared: u32,
}

/// The volatile state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sparing {
    /// Whether exits are spared.
    on: bool,
    /// When that began or ended last.
    since: VirtualTime,
    /// The last exit, or the end of the wait for an interrupt that it began.
    last: VirtualTime,
    /// The window's exits that cannot be spared.
    exits: u32,
    /// The window's exits that could be.
    could_be_spared: u32,
    /// The guest's own time in this window, in nanoseconds.
    ran: u64,
    /// Good windows in a row.
    good: u32,
    /// How many stays in a row were short.
    short_stays: u32,
}

impl Sparing {
    /// Whether exits are spared.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// An exit at `now` that could be spared.
    pub fn sparable_exit(&mut self, now: VirtualTime) {
        self.pass(now);
        self.could_be_spared += 1;
    }

    /// Another exit at `now`. `is_good`: whether exits should be spared, or go on being spared, after such a window.
    pub fn exit(&mut self, now: VirtualTime, is_good: impl FnOnce(Window) -> bool) {
        self.pass(now);
        self.exits += 1;
        if self.exits < WINDOW {
            return;
        }
        let gap = self.ran / u64::from(WINDOW);
        let good = is_good(Window { spared: self.on, gap, could_be_spared: self.could_be_spared });
        (self.exits, self.could_be_spared, self.ran) = (0, 0, 0);
        if self.on {
            if !good {
                self.end(now);
            }
            return;
        }
        self.good = if good { self.good + 1 } else { 0 };
        if self.good >= 1 << self.short_stays {
            (self.on, self.since, self.good) = (true, now, 0);
        }
    }

    /// The guest has waited for an interrupt, which is no time of its own.
    pub fn wakes(&mut self, now: VirtualTime) {
        self.last = now;
    }

    /// The guest was stopped where it has no exit.
    pub fn forced_stop(&mut self, now: VirtualTime) {
        if self.on {
            self.end(now);
        }
    }

    fn pass(&mut self, now: VirtualTime) {
        self.ran += now.since(self.last);
        self.last = now;
    }

    fn end(&mut self, now: VirtualTime) {
        let short = now.since(self.since) < SHORT;
        self.short_stays = if short { (self.short_stays + 1).min(MOST_DOUBLINGS) } else { 0 };
        (self.on, self.since, self.good) = (false, now, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENSE: u64 = 500;

    /// A guest that has an exit of each kind every `step` nanoseconds of its own time.
    #[derive(Default)]
    struct Guest {
        sparing: Sparing,
        now: u64,
    }

    impl Guest {
        fn time(&self) -> VirtualTime {
            VirtualTime::from_nanos(self.now)
        }

        fn exits(&mut self) {
            let now = self.time();
            if !self.sparing.is_on() {
                self.sparing.sparable_exit(now);
            }
            self.sparing.exit(now, |window| {
                assert_eq!(window.could_be_spared, if window.spared { 0 } else { WINDOW });
                window.gap <= DENSE
            });
        }

        /// One window. Whether exits are spared at its end.
        fn window(&mut self, step: u64) -> bool {
            for _ in 0..WINDOW {
                self.now += step;
                self.exits();
            }
            self.sparing.is_on()
        }
    }

    #[test]
    fn exits_are_spared_after_a_good_window_and_no_longer_after_another() {
        let mut guest = Guest::default();
        assert!(!guest.window(DENSE + 1));
        assert!(guest.window(DENSE));
        assert!(guest.window(DENSE));
        assert!(!guest.window(DENSE + 1));
        assert!(!guest.window(DENSE), "it did not stay for long");
        assert!(guest.window(DENSE));
    }

    #[test]
    fn waits_are_not_the_guests_time() {
        let mut guest = Guest::default();
        for _ in 0..WINDOW {
            guest.now += 100_000_000;
            guest.sparing.wakes(guest.time());
            guest.now += DENSE;
            guest.exits();
        }
        assert!(guest.sparing.is_on());
    }

    #[test]
    fn a_forced_stop_ends_it_and_what_did_not_stay_comes_back_later() {
        let mut guest = Guest::default();
        for windows in [1, 2, 4, 8, 16, 32, 64, 64] {
            for window in 1..=windows {
                assert_eq!(guest.window(100), window == windows, "{window} of {windows}");
            }
            guest.sparing.forced_stop(guest.time());
            assert!(!guest.sparing.is_on());
        }
        for _ in 0..64 {
            guest.window(100);
        }
        guest.now += SHORT;
        guest.sparing.wakes(guest.time());
        guest.sparing.forced_stop(guest.time());
        assert!(guest.window(100), "it had stayed");
    }
}
