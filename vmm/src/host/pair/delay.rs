//! Where an output's time goes, from the guest's kick until it has left.
//!
//! ```text
//! kick ─ capture ─ made ─ flush ─ its log is sent ─ wire ─ the ack is seen ─ release ─ left
//!                  └──────────── held: the Output Rule's share ─────────┘
//! ```
//!
//! Much of it overlaps: the log that an output waits for was mostly sent before the output was made, and then
//! flush is nothing and wire is what was left of the round trip by then.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use hdrhistogram::errors::CreationError;

use crate::host::control::{OutputDelay, OutputStage};
use crate::role::Moment;

/// Acks that are remembered, for outputs that wait for older ones.
const ACKS: usize = 256;

/// The longest time that is told apart: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// The stages, in the order in which they are shown.
const STAGES: [&str; 4] = ["capture", "flush", "wire", "release"];

/// An ack as the side thread saw it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    sequence: u64,
    /// When the newest frame that it acknowledges was sent.
    sent: Moment,
    /// When it was seen; `None`: it lay there when the side thread came to look, so nobody waited for it.
    at: Option<Moment>,
}

/// Distributions of the outputs' delays, in nanoseconds. Allocated once.
#[derive(Debug)]
pub(super) struct Delays {
    held: Histogram<u64>,
    stages: [Histogram<u64>; STAGES.len()],
    acks: VecDeque<Seen>,
}

impl Delays {
    /// Nothing has left yet.
    ///
    /// # Errors
    /// Never, with these bounds.
    pub(super) fn new() -> Result<Self, CreationError> {
        let new = || Histogram::new_with_max(LONGEST, 3);
        Ok(Self {
            held: new()?,
            stages: [new()?, new()?, new()?, new()?],
            acks: VecDeque::with_capacity(ACKS),
        })
    }

    /// The log up to `sequence`, sent at `sent`, is acknowledged; `at`: when that was seen, by somebody who
    /// waited for it.
    pub(super) fn acknowledged(&mut self, sequence: u64, sent: Moment, at: Option<Moment>) {
        if self.acks.len() == ACKS {
            self.acks.pop_front();
        }
        self.acks.push_back(Seen { sequence, sent, at });
    }

    /// An output that the guest kicked off at `kick` was made at `made`, waited for frame `sequence`, and has left.
    pub(super) fn left(&mut self, sequence: u64, kick: Moment, made: Moment, left: Moment) {
        let first = self.acks.partition_point(|ack| ack.sequence < sequence);
        let (sent, seen) = match self.acks.get(first) {
            Some(ack) => (ack.sent, ack.at.unwrap_or(made)),
            // Alone, or so long ago that nobody remembers.
            None => (made, made),
        };
        let sent = sent.max(made);
        let free = seen.max(sent);
        self.held.saturating_record(free.since(made));
        let spans = [made.since(kick), sent.since(made), free.since(sent), left.since(free)];
        for (stage, span) in self.stages.iter_mut().zip(spans) {
            stage.saturating_record(span);
        }
    }

    /// What there is to tell; `None` before the first output.
    pub(super) fn told(&self) -> Option<OutputDelay> {
        let micros =
            |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!self.held.is_empty()).then(|| OutputDelay {
            count: self.held.len(),
            p50_us: micros(&self.held, 0.5),
            p99_us: micros(&self.held, 0.99),
            max_us: self.held.max() as f64 / 1e3,
            stages: STAGES
                .iter()
                .zip(&self.stages)
                .map(|(name, spans)| OutputStage {
                    name: (*name).to_owned(),
                    p50_us: micros(spans, 0.5),
                    p99_us: micros(spans, 0.99),
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(micros: u64) -> Moment {
        Moment::from_nanos(micros * 1000)
    }

    fn stages(delays: &Delays) -> Vec<(String, u64)> {
        let told = delays.told().unwrap();
        told.stages.iter().map(|stage| (stage.name.clone(), stage.p50_us.round() as u64)).collect()
    }

    #[test]
    fn an_output_with_a_batch_of_its_own_waits_for_flush_and_round_trip() {
        let mut delays = Delays::new().unwrap();
        assert_eq!(delays.told(), None);
        delays.acknowledged(7, at(130), Some(at(180)));
        delays.left(7, at(100), at(120), at(190));
        let wanted = [("capture", 20), ("flush", 10), ("wire", 50), ("release", 10)];
        assert_eq!(stages(&delays), wanted.map(|(name, us)| (name.to_owned(), us)));
        assert_eq!(delays.told().unwrap().p50_us.round(), 60.0);
    }

    #[test]
    fn an_output_whose_log_was_sent_before_waits_for_the_rest_of_the_round_trip_only() {
        let mut delays = Delays::new().unwrap();
        delays.acknowledged(7, at(80), Some(at(130)));
        delays.left(7, at(100), at(120), at(131));
        assert_eq!(stages(&delays)[1..], [("flush".into(), 0), ("wire".into(), 10), ("release".into(), 1)]);
        // The ack was there when somebody looked: the output had waited for the look alone.
        delays.acknowledged(8, at(180), None);
        delays.left(8, at(200), at(220), at(231));
        assert_eq!(delays.told().unwrap().count, 2);
        assert_eq!(delays.held.min(), 0);
    }

    #[test]
    fn an_ack_covers_all_before_it_and_no_ack_means_no_wait() {
        let mut delays = Delays::new().unwrap();
        delays.left(0, at(1), at(2), at(3));
        assert_eq!(delays.held.max(), 0);
        for sequence in 1..=ACKS as u64 + 10 {
            delays.acknowledged(2 * sequence, at(10 * sequence), Some(at(10 * sequence + 5)));
        }
        assert_eq!(delays.acks.len(), ACKS);
        delays.left(101, at(500), at(505), at(600));
        assert_eq!(stages(&delays)[2].0, "wire");
        assert!(delays.held.max() >= 9_000, "the ack of frame 102 came at 515");
    }
}
