//! When recent batches were encoded and handed to the network.
//!
//! The vCPU thread notes it, the side thread looks it up when the ack comes. Nobody waits for anybody: a note that
//! is not there yet, or not any more, leaves an output's stages undivided, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::role::Moment;

/// Batches that are remembered.
const BATCHES: usize = 256;

/// One batch. Times in nanoseconds of this side's clock; zero: not yet.
#[derive(Debug, Default)]
struct Mark {
    sequence: AtomicU64,
    encoded: AtomicU64,
    flushed: AtomicU64,
}

/// The notes of the last batches.
#[derive(Debug)]
pub(super) struct Marks([Mark; BATCHES]);

impl Marks {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mark::default()))
    }

    fn at(&self, sequence: u64) -> &Mark {
        &self.0[sequence as usize % BATCHES]
    }

    /// Batch `sequence` is encoded. Call on the vCPU thread.
    pub(super) fn encoded(&self, sequence: u64, at: Moment) {
        let mark = self.at(sequence);
        mark.sequence.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        mark.flushed.store(0, Ordering::Relaxed);
        mark.encoded.store(at.as_nanos(), Ordering::Relaxed);
        mark.sequence.store(sequence, Ordering::Release);
    }

    /// The network has taken batch `sequence`, or will. Call on the vCPU thread.
    pub(super) fn flushed(&self, sequence: u64, at: Moment) {
        self.at(sequence).flushed.store(at.as_nanos(), Ordering::Relaxed);
    }

    /// When batch `sequence` was encoded and flushed, as far as that is known.
    pub(super) fn of(&self, sequence: u64) -> Option<(Moment, Option<Moment>)> {
        let mark = self.at(sequence);
        if sequence == 0 || mark.sequence.load(Ordering::Acquire) != sequence {
            return None;
        }
        let (encoded, flushed) = (mark.encoded.load(Ordering::Relaxed), mark.flushed.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let whole = mark.sequence.load(Ordering::Relaxed) == sequence;
        whole.then(|| (Moment::from_nanos(encoded), (flushed != 0).then(|| Moment::from_nanos(flushed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_remembered_until_its_place_is_taken() {
        let (marks, at) = (Marks::new(), Moment::from_nanos);
        assert_eq!(marks.of(0), None);
        assert_eq!(marks.of(7), None);
        marks.encoded(7, at(10));
        assert_eq!(marks.of(7), Some((at(10), None)));
        marks.flushed(7, at(12));
        assert_eq!(marks.of(7), Some((at(10), Some(at(12)))));
        marks.encoded(7 + BATCHES as u64, at(90));
        assert_eq!(marks.of(7), None);
        assert_eq!(marks.of(7 + BATCHES as u64), Some((at(90), None)));
    }
}
