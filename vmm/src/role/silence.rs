//! The failure detector: how long has nothing been heard from the peer?
//!
//! It can be wrong: it only starts a claim, never decides one. Being wrong is made rare in one way: a side
//! that was itself stopped (not scheduled, SIGSTOP) finds the peer's messages still unread and must not take
//! its own absence for the peer's. It excuses the silence once, for one heartbeat, in which its reader can
//! catch up. That delays a suspicion and so costs no safety.

use super::moment::Moment;

/// Watches one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Silence {
    bound: u64,
    heartbeat: u64,
    heard: Moment,
    excuse: Excuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Excuse {
    Unused,
    Until(Moment),
}

impl Silence {
    /// Watches from `now` on, as if the peer had just been heard. `bound` and `heartbeat` in nanoseconds.
    #[must_use]
    pub const fn new(now: Moment, bound: u64, heartbeat: u64) -> Self {
        Self { bound, heartbeat, heard: now, excuse: Excuse::Unused }
    }

    /// Something of the peer was read: a heartbeat, a frame, an ack.
    pub fn heard(&mut self, now: Moment) {
        self.heard = self.heard.max(now);
        self.excuse = Excuse::Unused;
    }

    /// When the peer was last heard.
    #[must_use]
    pub const fn last_heard(&self) -> Moment {
        self.heard
    }

    /// Looks at the clock: is the peer to be taken for lost? `due` is when this side was to send its next
    /// heartbeat: if that is long past, this side was absent.
    pub fn lost(&mut self, now: Moment, due: Moment) -> bool {
        if now.since(self.heard) < self.bound {
            return false;
        }
        let absent = now.since(due) > self.heartbeat;
        if absent && self.excuse == Excuse::Unused {
            self.excuse = Excuse::Until(now + self.heartbeat);
        }
        match self.excuse {
            Excuse::Unused => true,
            Excuse::Until(end) => now >= end,
        }
    }

    /// When [`Silence::lost`] may next change its answer by time alone.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        let end = self.heard + self.bound;
        match self.excuse {
            Excuse::Unused => end,
            Excuse::Until(excused) => end.max(excused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    #[test]
    fn silence_is_measured_from_the_last_word() {
        let mut silence = Silence::new(at(0), 50, 10);
        assert!(!silence.lost(at(49), at(49)));
        silence.heard(at(45));
        assert_eq!(silence.deadline(), at(95));
        assert!(!silence.lost(at(94), at(94)));
        assert!(silence.lost(at(95), at(95)));
    }

    #[test]
    fn own_absence_is_excused_once() {
        let mut silence = Silence::new(at(0), 50, 10);
        assert!(!silence.lost(at(1000), at(10)), "just woke up");
        assert_eq!(silence.deadline(), at(1010));
        assert!(!silence.lost(at(1009), at(1010)));
        assert!(silence.lost(at(1010), at(1010)));
        // Always late is no excuse.
        let mut slow = Silence::new(at(0), 50, 10);
        assert!(!slow.lost(at(60), at(10)));
        assert!(slow.lost(at(120), at(70)));
        // A word makes good for it.
        slow.heard(at(121));
        assert!(!slow.lost(at(1000), at(130)));
    }
}
