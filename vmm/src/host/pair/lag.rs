//! How far the backup's execution is behind, in time.

use std::collections::VecDeque;

use crate::role::Moment;

/// Frames that are remembered. With more on their way the lag is that of the oldest all the same.
const MOST: usize = 8192;

/// When each frame that is not executed yet was sent, or came in.
#[derive(Debug)]
pub(super) struct Lag(VecDeque<(u64, Moment)>);

impl Lag {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(MOST))
    }

    /// The log up to `sequence` is on its way since `at`.
    pub(super) fn begins(&mut self, sequence: u64, at: Moment) {
        if self.0.len() < MOST {
            self.0.push_back((sequence, at));
        }
    }

    /// The log up to `sequence` is executed. The age of the oldest frame that is not, in nanoseconds.
    pub(super) fn executed(&mut self, sequence: u64, now: Moment) -> u64 {
        while self.0.front().is_some_and(|(oldest, _)| *oldest <= sequence) {
            self.0.pop_front();
        }
        self.0.front().map_or(0, |(_, at)| now.since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_frame_that_is_not_executed_tells_the_lag() {
        let at = Moment::from_nanos;
        let mut lag = Lag::new();
        assert_eq!(lag.executed(0, at(5)), 0);
        for sequence in 1..=2 * MOST as u64 {
            lag.begins(sequence, at(10 * sequence));
        }
        assert_eq!(lag.executed(3, at(1000)), 960);
        assert!(lag.0.capacity() < 2 * MOST, "it does not grow with a backup that stands still");
        assert_eq!(lag.executed(3 * MOST as u64, at(1000)), 0);
    }
}
