//! When the transmit queue is looked at: when the driver notifies it, or at every exit.
//!
//! A notification is an exit. A guest that sends much has exits of other kinds all the time, for the interrupts that
//! the answers bring. What it has queued can leave at those, many packets at one, and the driver is asked not to notify
//! (virtio 1.3, section 2.7.10). It finds its card busy, as it would a real one, and gathers what is over of each of its
//! writes in full packets. The price is time: a packet waits for the next exit. There is one when the guest idles; where it
//! computes, it is near on the average, and [`Sparing`] sees to it that a forced stop has to help out but once.

use crate::machine::sparing::{Sparing, WINDOW, Window};
use crate::machine::time::VirtualTime;

/// Notifications in a window that are worth it.
const WORTHWHILE: u32 = WINDOW / 4;

/// Bytes of a packet, in the mean of a window, from which on they are a stream's: it is after throughput.
const STREAM: u64 = 16 << 10;

/// How far exits may lie from each other, in nanoseconds in the mean of a window.
struct Gaps {
    /// To begin.
    dense: u64,
    /// To go on.
    sparse: u64,
}

/// For a stream: a packet of 64 KiB takes 50 µs on a wire of 10 Gbit/s.
const OF_STREAMS: Gaps = Gaps { dense: 500_000, sparse: 1_000_000 };

/// For answers, which somebody waits for.
const OF_ANSWERS: Gaps = Gaps { dense: 300_000, sparse: 600_000 };

/// The volatile state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Polling {
    /// For a driver that never notifies.
    always: bool,
    notifications: Sparing,
    /// Whether the driver was asked not to notify.
    quiet: bool,
    /// Packets of the window.
    packets: u64,
    /// Their bytes.
    bytes: u64,
    /// How many times it began to look at every exit.
    begun: u64,
}

impl Polling {
    /// For a driver that never notifies.
    pub(super) fn always() -> Self {
        Self { always: true, ..Self::default() }
    }

    /// Whether the driver was asked not to notify, so that the device must look at the queue at every exit.
    pub(super) const fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The device looks at the queue. Whether it asks the driver not to notify of what comes next.
    pub(super) const fn look(&mut self) -> bool {
        self.quiet = self.always || self.notifications.is_on();
        self.quiet
    }

    /// A new driver: it notifies until it is asked not to.
    pub(super) const fn reset(&mut self) {
        self.quiet = false;
    }

    /// How many times the device began to look at every exit.
    pub(super) const fn begun(&self) -> u64 {
        self.begun
    }

    /// So many packets, of so many bytes together, were found.
    pub(super) const fn found(&mut self, packets: u16, bytes: u64) {
        self.packets += packets as u64;
        self.bytes += bytes;
    }

    /// An exit at `now`, `notifies` telling whether it is a notification.
    pub(super) fn exit(&mut self, now: VirtualTime, notifies: bool) {
        if notifies {
            return self.notifications.sparable_exit(now);
        }
        let before = self.notifications.is_on();
        let (packets, bytes) = (&mut self.packets, &mut self.bytes);
        self.notifications
            .exit(now, |window| is_good(window, std::mem::take(packets), std::mem::take(bytes)));
        self.begun += u64::from(self.notifications.is_on() && !before);
    }

    /// The guest's wait for an interrupt ends.
    pub(super) fn wakes(&mut self, now: VirtualTime) {
        self.notifications.wakes(now);
    }

    /// The guest was stopped where it has no exit.
    pub(super) fn forced_stop(&mut self, now: VirtualTime) {
        self.notifications.forced_stop(now);
    }
}

fn is_good(window: Window, packets: u64, bytes: u64) -> bool {
    let gaps = if bytes >= packets * STREAM { OF_STREAMS } else { OF_ANSWERS };
    if window.spared {
        packets > 0 && window.gap <= gaps.sparse
    } else {
        window.could_be_spared >= WORTHWHILE && window.gap <= gaps.dense
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of exits, `gap` nanoseconds apart, with `packets` of `bytes` each to every one of them.
    fn window(polling: &mut Polling, now: &mut u64, gap: u64, (packets, bytes): (u16, u64)) -> bool {
        for _ in 0..WINDOW {
            *now += gap;
            let time = VirtualTime::from_nanos(*now);
            for _ in 0..packets {
                if !polling.is_quiet() {
                    polling.exit(time, true);
                }
                polling.found(1, bytes);
                polling.look();
            }
            polling.exit(time, false);
        }
        polling.look()
    }

    #[test]
    fn streams_and_answers_are_polled_while_exits_are_dense() {
        for (gaps, bytes) in [(OF_STREAMS, STREAM), (OF_ANSWERS, STREAM - 1)] {
            let (mut polling, mut now) = (Polling::default(), 0);
            assert!(!window(&mut polling, &mut now, gaps.dense + 1, (1, bytes)));
            assert!(window(&mut polling, &mut now, gaps.dense, (1, bytes)));
            assert!(window(&mut polling, &mut now, gaps.sparse, (1, bytes)));
            assert!(!window(&mut polling, &mut now, gaps.sparse + 1, (1, bytes)));
            assert_eq!(polling.begun(), 1);
        }
    }

    #[test]
    fn who_sends_nothing_is_not_polled_and_no_longer() {
        let (mut polling, mut now) = (Polling::default(), 0);
        assert!(!window(&mut polling, &mut now, 1000, (0, 0)));
        assert!(window(&mut polling, &mut now, 1000, (1, 60)));
        assert!(!window(&mut polling, &mut now, 1000, (0, 0)));
    }

    #[test]
    fn a_driver_that_never_notifies_is_always_polled() {
        let (mut polling, mut now) = (Polling::always(), 0);
        for gap in [1000, 10_000_000] {
            assert!(window(&mut polling, &mut now, gap, (1, 60)));
            polling.forced_stop(VirtualTime::from_nanos(now));
            assert!(polling.look());
        }
    }
}
