//! Where an output's time goes, from the guest's kick until it has left.
//!
//! ```text
//! kick ─ capture ─ batch closed ─ encode ─ flush ─ sent ─ wire ─ the ack is seen ─ release ─ queue ─ write ─ left
//!           made ├───────────────── held: the Output Rule's share ──────────────┤
//! ```
//!
//! Release is this side's thread coming to look, and the protocol; queue is the writing of the outputs that leave
//! before it in the same round, which a machine without protection does one by one too.
//!
//! Much of it overlaps: the log that an output waits for was mostly sent before the output was made, and then
//! encode and flush are nothing and wire is what was left of the round trip by then.
//!
//! Wire is from the moment when the network had the batch until this side's thread saw the ack. The backup's wake-up
//! and ack, and this thread's own wake-up, are in it: two hosts have two clocks, and the kernel does not tell when
//! it woke a thread, so they cannot be told apart here.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use hdrhistogram::errors::CreationError;

use super::marks::Marks;
use crate::host::control::{OutputDelay, OutputStage};
use crate::role::Moment;

/// Acks that are remembered, for outputs that wait for older ones.
const ACKS: usize = 256;

/// The longest time that is told apart: a minute, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;

/// The stages, in the order in which they are shown.
const STAGES: [&str; 7] = ["capture", "encode", "flush", "wire", "release", "queue", "write"];

/// An ack as the side thread saw it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The newest frame that it acknowledges.
    sequence: u64,
    /// When that frame's batch was closed, encoded, and with the network.
    closed: Moment,
    encoded: Moment,
    flushed: Moment,
    /// When it was seen; `None`: it lay there when the side thread came to look, so nobody waited for it.
    at: Option<Moment>,
}

/// An output that leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    /// The frame that it waited for.
    pub(super) sequence: u64,
    /// When the guest kicked it off, and when it was made.
    pub(super) kick: Moment,
    pub(super) made: Moment,
    /// When the round of releases began, and when it was its turn.
    pub(super) round: Moment,
    pub(super) turn: Moment,
}

/// Decimal digits that are told apart. With three, the counts of all histograms are larger than a core's cache, and each
/// output pays for ten misses.
const DIGITS: u8 = 2;

/// A distribution in nanoseconds, and how often its newest value came in a row: outputs that one exit made share most of
/// their spans, and a look into a histogram for each of ten of them would cost an output a tenth of its way into the network.
#[derive(Debug)]
struct Spans {
    histogram: Histogram<u32>,
    newest: u64,
    /// Not in the histogram yet.
    times: u64,
}

impl Spans {
    fn new() -> Result<Self, CreationError> {
        Ok(Self { histogram: Histogram::new_with_max(LONGEST, DIGITS)?, newest: 0, times: 0 })
    }

    fn record(&mut self, nanos: u64) {
        if nanos != self.newest {
            self.settle();
            self.newest = nanos;
        }
        self.times += 1;
    }

    /// The distribution of all that was recorded.
    fn settle(&mut self) -> &Histogram<u32> {
        if self.times > 0 {
            self.histogram.saturating_record_n(self.newest, u32::try_from(self.times).unwrap_or(u32::MAX));
            self.times = 0;
        }
        &self.histogram
    }

    /// A quantile in microseconds.
    fn micros(&mut self, quantile: f64) -> f64 {
        self.settle().value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Distributions of the outputs' delays. Allocated once.
#[derive(Debug)]
pub(super) struct Delays {
    held: Spans,
    total: Spans,
    until_release: Spans,
    stages: [Spans; STAGES.len()],
    acks: VecDeque<Seen>,
}

impl Delays {
    /// Nothing has left yet.
    ///
    /// # Errors
    /// Never, with these bounds.
    pub(super) fn new() -> Result<Self, CreationError> {
        let new = Spans::new;
        Ok(Self {
            held: new()?,
            total: new()?,
            until_release: new()?,
            stages: [new()?, new()?, new()?, new()?, new()?, new()?, new()?],
            acks: VecDeque::with_capacity(ACKS),
        })
    }

    /// The log up to `sequence`, whose batch was closed at `closed`, is acknowledged; `at`: when that was seen, by
    /// somebody who waited for it.
    pub(super) fn acknowledged(&mut self, sequence: u64, closed: Moment, at: Option<Moment>, marks: &Marks) {
        if self.acks.len() == ACKS {
            self.acks.pop_front();
        }
        // Without a note, the time counts as the wire's.
        let (encoded, flushed) = marks.of(sequence).unwrap_or((closed, None));
        self.acks.push_back(Seen { sequence, closed, encoded, flushed: flushed.unwrap_or(encoded), at });
    }

    /// An output has left that waited for its log, or looked whether it had to.
    pub(super) fn left(&mut self, output: Leaving, left: Moment) {
        let first = self.acks.partition_point(|ack| ack.sequence < output.sequence);
        let log = match self.acks.get(first) {
            Some(ack) => [ack.closed, ack.encoded, ack.flushed, ack.at.unwrap_or(output.made)],
            // Alone, or so long ago that nobody remembers.
            None => [output.made; 4],
        };
        self.record(&output, log, left);
    }

    /// An output has left whose log was acknowledged when it was made.
    pub(super) fn passed(&mut self, output: Leaving, left: Moment) {
        self.record(&output, [output.made; 4], left);
    }

    /// `log`: when the batch that it waited for was closed, encoded, with the network, and seen to be acknowledged.
    fn record(&mut self, output: &Leaving, log: [Moment; 4], left: Moment) {
        let (Leaving { kick, made, round, turn, .. }, [closed, encoded, flushed, seen]) = (*output, log);
        // What was over before the output was made cost it nothing.
        let mut from = kick;
        let spans = [closed, encoded, flushed, seen, round, turn, left].map(|until| {
            let until = until.max(made).max(from);
            until.since(std::mem::replace(&mut from, until))
        });
        let free = seen.max(closed).max(flushed).max(made);
        self.held.record(free.since(made));
        self.total.record(left.since(kick));
        let [.., queue, write] = spans;
        self.until_release.record(left.since(kick).saturating_sub(queue + write));
        for (stage, span) in self.stages.iter_mut().zip(spans) {
            stage.record(span);
        }
    }

    /// What there is to tell; `None` before the first output.
    pub(super) fn told(&mut self) -> Option<OutputDelay> {
        let held = self.held.settle();
        let (count, max_us) = (held.len(), held.max() as f64 / 1e3);
        (count > 0).then(|| OutputDelay {
            count,
            p50_us: self.held.micros(0.5),
            p99_us: self.held.micros(0.99),
            max_us,
            total_p50_us: self.total.micros(0.5),
            total_p99_us: self.total.micros(0.99),
            release_p50_us: self.until_release.micros(0.5),
            release_p99_us: self.until_release.micros(0.99),
            stages: STAGES
                .iter()
                .zip(&mut self.stages)
                .map(|(name, spans)| OutputStage {
                    name: (*name).to_owned(),
                    p50_us: spans.micros(0.5),
                    p99_us: spans.micros(0.99),
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

    fn stages(delays: &mut Delays) -> Vec<u64> {
        let told = delays.told().unwrap();
        told.stages.iter().map(|stage| stage.p50_us.round() as u64).collect()
    }

    fn leave(delays: &mut Delays, sequence: u64, times: [u64; 5]) {
        let [kick, made, round, turn, left] = times.map(at);
        delays.left(Leaving { sequence, kick, made, round, turn }, left);
    }

    #[test]
    fn an_output_with_a_batch_of_its_own_waits_for_flush_and_round_trip() {
        let (mut delays, marks) = (Delays::new().unwrap(), Marks::new());
        assert_eq!(delays.told(), None);
        marks.encoded(7, at(131));
        marks.flushed(7, at(140));
        delays.acknowledged(7, at(130), Some(at(180)), &marks);
        leave(&mut delays, 7, [100, 120, 181, 184, 190]);
        assert_eq!(stages(&mut delays), [30, 1, 9, 40, 1, 3, 6]);
        let told = delays.told().unwrap();
        assert_eq!([told.p50_us, told.total_p50_us, told.release_p50_us].map(f64::round), [60.0, 90.0, 81.0]);
    }

    #[test]
    fn without_a_note_of_the_batch_the_time_is_the_wires() {
        let (mut delays, marks) = (Delays::new().unwrap(), Marks::new());
        delays.acknowledged(7, at(130), Some(at(180)), &marks);
        leave(&mut delays, 7, [100, 120, 110, 184, 190]);
        assert_eq!(stages(&mut delays), [30, 0, 0, 50, 0, 4, 6]);
    }

    #[test]
    fn an_output_whose_log_was_sent_before_waits_for_the_rest_of_the_round_trip_only() {
        let (mut delays, marks) = (Delays::new().unwrap(), Marks::new());
        marks.encoded(7, at(82));
        marks.flushed(7, at(90));
        delays.acknowledged(7, at(80), Some(at(130)), &marks);
        leave(&mut delays, 7, [100, 120, 131, 131, 132]);
        assert_eq!(stages(&mut delays), [20, 0, 0, 10, 1, 0, 1]);
        // The ack was there when somebody looked: the output had waited for the look alone.
        delays.acknowledged(8, at(180), None, &marks);
        leave(&mut delays, 8, [200, 220, 230, 230, 231]);
        assert_eq!(delays.told().unwrap().count, 2);
        assert_eq!(delays.held.settle().min(), 0);
    }

    #[test]
    fn an_ack_covers_all_before_it_and_no_ack_means_no_wait() {
        let (mut delays, marks) = (Delays::new().unwrap(), Marks::new());
        leave(&mut delays, 0, [1, 2, 3, 3, 3]);
        assert_eq!(delays.held.settle().max(), 0);
        for sequence in 1..=ACKS as u64 + 10 {
            let (sent, seen) = (at(10 * sequence), at(10 * sequence + 5));
            delays.acknowledged(2 * sequence, sent, Some(seen), &marks);
        }
        assert_eq!(delays.acks.len(), ACKS);
        leave(&mut delays, 101, [500, 505, 600, 600, 600]);
        assert!(delays.held.settle().max() >= 9_000, "the ack of frame 102 came at 515");
    }
}
