//! Whether acks are worth waking up for.
//!
//! While no output waits, the side thread may sleep and let acks collect; who makes an output that waits has to wake it then, and the ack
//! wakes it once more. Or it waits for acks all the time: one waking for each ack, whether an output waits for it or not. Which of the two
//! costs less depends on who is quicker, the acks or the guest; so it follows what has been of late.

/// Where it ends.
const MOST: u8 = 8;

/// From here on acks are waited for.
const LISTENS: u8 = 4;

/// What has been of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attention {
    score: u8,
}

impl Attention {
    /// This thread slept, and was woken for outputs that wait: it would have been woken by their ack alone.
    pub(super) fn woken(&mut self) {
        self.add(2);
    }

    /// An ack woke this thread, and outputs left by it, or none.
    pub(super) fn heard(&mut self, left: bool) {
        if left { self.add(1) } else { self.subtract(1) }
    }

    /// This thread waited for an ack, with no output that waits, and none came.
    pub(super) fn idled(&mut self) {
        self.subtract(1);
    }

    /// Outputs left without this thread, so many times: it would have been woken for nothing.
    pub(super) fn passed(&mut self, times: u64) {
        self.subtract(times);
    }

    /// Whether to wait for acks while no output waits.
    pub(super) const fn listens(self) -> bool {
        self.score >= LISTENS
    }

    fn add(&mut self, points: u8) {
        self.score = (self.score + points).min(MOST);
    }

    fn subtract(&mut self, points: u64) {
        self.score = u64::from(self.score).saturating_sub(points) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_that_are_late_are_waited_for_until_they_come_in_time() {
        let mut attention = Attention::default();
        assert!(!attention.listens());
        attention.woken();
        attention.woken();
        assert!(attention.listens());
        // One for nobody between those that are waited for does not matter.
        for _ in 0..20 {
            attention.heard(true);
            attention.heard(true);
            attention.heard(false);
            assert!(attention.listens());
        }
        let for_nothing = (0..).take_while(|_| {
            attention.heard(false);
            attention.listens()
        });
        assert!(for_nothing.count() < usize::from(MOST));
    }

    #[test]
    fn a_guest_that_idles_is_not_listened_to_for_long() {
        let mut attention = Attention::default();
        (0..100).for_each(|_| attention.woken());
        let idle = (0..).take_while(|_| {
            attention.idled();
            attention.listens()
        });
        assert!(idle.count() < usize::from(MOST));
    }

    #[test]
    fn a_few_late_ones_among_many_in_time_are_woken_for() {
        let mut attention = Attention::default();
        for _ in 0..1000 {
            attention.passed(20);
            attention.woken();
            assert!(!attention.listens());
        }
        attention.woken();
        attention.woken();
        attention.passed(u64::MAX);
        assert!(!attention.listens());
    }
}
