//! The protocol's constants, and what must hold between them.

use super::moment::MILLISECOND;

/// How far two hosts' clock rates may be apart, in thousandths.
pub const CLOCK_RATE_ERROR_PERMILLE: u64 = 10;

/// Times of the protocol, in nanoseconds unless said otherwise. The default suits one LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// From one heartbeat to the next.
    pub heartbeat: u64,
    /// So many heartbeats of silence, on the datagrams and on the log alike, and the peer counts as lost. At
    /// least 3.
    pub missed: u32,
    /// By how much the primary's lease is shorter than the silence bound, in thousandths; 20 to 500. It pays
    /// for clocks of different rate and for the time between asking the gate and the last byte leaving.
    pub margin_permille: u32,
    /// After the log channel broke, so many heartbeats of silence are enough for the backup to go to the
    /// arbiter. At least 1, less than `missed`. It shortens no wait that the lease needs.
    pub early: u32,
    /// Wait before an unreachable arbiter is asked again.
    pub claim_retry: u64,
    /// With log sent and no acknowledgement gained for so long, the channel counts as broken even if
    /// heartbeats are heard.
    pub ack_patience: u64,
    /// A primary that handed over and heard nothing for so long goes to the arbiter itself.
    pub hand_over_patience: u64,
    /// Lag of the backup (time an entry waits to be executed) above which the primary is slowed.
    pub lag_bound: u64,
    /// Lag in log entries above which the primary is slowed.
    pub lag_entries: u64,
    /// Log counts as acknowledged when it lies in the backup's memory, before the backup has looked at it. So
    /// a backup that closed the channel may still find some there: it claims only after
    /// [`Event::ChannelLost`](super::event::Event::ChannelLost) has said that this was all.
    pub placed: bool,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: 10 * MILLISECOND,
            missed: 5,
            margin_permille: 100,
            early: 2,
            claim_retry: 50 * MILLISECOND,
            ack_patience: 2_000 * MILLISECOND,
            hand_over_patience: 500 * MILLISECOND,
            lag_bound: 200 * MILLISECOND,
            lag_entries: 1 << 16,
            placed: false,
        }
    }
}

/// Why a [`Timing`] cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// No heartbeats, or so rare that the bounds overflow.
    #[error("heartbeat of {0} ns: give 1 ns to 60 s")]
    Heartbeat(u64),
    /// Fewer than three missed heartbeats leave no room for a lease.
    #[error("{0} missed heartbeats: give 3 to 1000")]
    Missed(u32),
    /// The lease would not end before the backup may go live, or would be useless.
    #[error("lease margin of {0} thousandths: give 20 to 500")]
    Margin(u32),
    /// An early claim must still be later than one heartbeat and earlier than the silence bound.
    #[error("{early} heartbeats of silence for an early claim: give 1 to {}", missed - 1)]
    Early {
        /// The value given.
        early: u32,
        /// The silence bound in heartbeats.
        missed: u32,
    },
    /// A wait of zero would spin, a lag bound of zero would always slow the primary.
    #[error("{0} is zero: give a time")]
    Zero(&'static str),
}

impl Timing {
    /// Checks the relations that the lease argument and the failure detector rest on.
    ///
    /// # Errors
    /// The first relation that does not hold.
    pub fn validate(&self) -> Result<(), TimingError> {
        if self.heartbeat == 0 || self.heartbeat > 60_000 * MILLISECOND {
            return Err(TimingError::Heartbeat(self.heartbeat));
        }
        if !(3..=1000).contains(&self.missed) {
            return Err(TimingError::Missed(self.missed));
        }
        if !(20..=500).contains(&self.margin_permille) {
            return Err(TimingError::Margin(self.margin_permille));
        }
        if self.early == 0 || self.early >= self.missed {
            return Err(TimingError::Early { early: self.early, missed: self.missed });
        }
        let nonzero = [
            ("claim_retry", self.claim_retry),
            ("ack_patience", self.ack_patience),
            ("hand_over_patience", self.hand_over_patience),
            ("lag_bound", self.lag_bound),
            ("lag_entries", self.lag_entries),
        ];
        nonzero.iter().find(|(_, time)| *time == 0).map_or(Ok(()), |(name, _)| Err(TimingError::Zero(name)))
    }

    /// The silence bound: how long the backup waits, from the last it heard, before it may be live.
    #[must_use]
    pub const fn silence(&self) -> u64 {
        self.heartbeat.saturating_mul(self.missed as u64)
    }

    /// How long a heartbeat that the backup echoed lets the primary release output, from its sending.
    #[must_use]
    pub const fn lease(&self) -> u64 {
        self.silence() / 1000 * (1000 - self.margin_permille as u64)
            + self.silence() % 1000 * (1000 - self.margin_permille as u64) / 1000
    }

    /// The longest time that may pass between asking the gate and the last released byte leaving the host,
    /// for the lease argument to hold: what the margin leaves after the clocks' rate error.
    #[must_use]
    pub const fn slack(&self) -> u64 {
        let worst_lease =
            self.lease() + self.lease() / 1000 * CLOCK_RATE_ERROR_PERMILLE + CLOCK_RATE_ERROR_PERMILLE;
        self.silence().saturating_sub(worst_lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_is_valid_and_leaves_over_four_milliseconds() {
        let timing = Timing::default();
        timing.validate().unwrap();
        assert_eq!(timing.silence(), 50 * MILLISECOND);
        assert_eq!(timing.lease(), 45 * MILLISECOND);
        assert!(timing.slack() > 4 * MILLISECOND, "{}", timing.slack());
    }

    #[test]
    fn nonsense_is_refused() {
        let with = |change: fn(&mut Timing)| {
            let mut timing = Timing::default();
            change(&mut timing);
            timing.validate().unwrap_err().to_string()
        };
        assert!(with(|t| t.heartbeat = 0).contains("heartbeat"));
        assert!(with(|t| t.missed = 2).contains("missed"));
        assert!(with(|t| t.margin_permille = 5).contains("margin"));
        assert!(with(|t| t.early = 5).contains("early"));
        assert!(with(|t| t.claim_retry = 0).contains("claim_retry"));
    }

    proptest! {
        #[test]
        fn every_valid_timing_ends_the_lease_before_the_silence(
            heartbeat in 1_000u64..60_000_000_000, missed in 3u32..1000, margin_permille in 20u32..=500,
        ) {
            let timing = Timing { heartbeat, missed, margin_permille, ..Timing::default() };
            timing.validate().unwrap();
            // The primary's clock at its slowest against the backup's.
            let lease = u128::from(timing.lease()) * 1010;
            prop_assert!(lease < u128::from(timing.silence()) * 1000);
            prop_assert!(timing.slack() > 0);
        }
    }
}
