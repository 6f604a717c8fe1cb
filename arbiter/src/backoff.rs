//! How long to stand back when two sides claim at the same moment.

use std::time::Duration;

/// The first wait is drawn from up to twice this: about what a claim takes on a local disk.
const FIRST: Duration = Duration::from_micros(500);

/// No wait is drawn from more than twice this.
const LONGEST: Duration = Duration::from_millis(128);

/// Waits before a claim is given up as contended, about four seconds in all.
const ATTEMPTS: u32 = 32;

/// Waits that double, each drawn at random so that two contenders do not keep step.
pub(crate) struct Backoff<'a> {
    wait: &'a mut dyn FnMut(Duration),
    random: u64,
    attempt: u32,
}

impl<'a> Backoff<'a> {
    /// Waits by calling `wait`; the lengths follow from `seed`.
    pub(crate) fn new(seed: u64, wait: &'a mut dyn FnMut(Duration)) -> Self {
        Self { wait, random: seed, attempt: 0 }
    }

    /// Waits for the next length.
    ///
    /// # Errors
    /// All attempts are used up; the length says how long to wait before claiming again.
    pub(crate) fn pause(&mut self) -> Result<(), Duration> {
        let length = self.next_length();
        if self.attempt > ATTEMPTS {
            return Err(length);
        }
        (self.wait)(length);
        Ok(())
    }

    fn next_length(&mut self) -> Duration {
        let base = FIRST.saturating_mul(1 << self.attempt.min(16)).min(LONGEST);
        self.attempt += 1;
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        base.mul_f64(2.0 * (mixed >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_are_bounded_and_end() {
        let mut waits = Vec::new();
        let mut wait = |length| waits.push(length);
        let mut backoff = Backoff::new(1, &mut wait);
        let after = (0..1000).find_map(|_| backoff.pause().err()).expect("gives up");
        assert!(after <= 2 * LONGEST);
        assert_eq!(waits.len(), ATTEMPTS as usize);
        assert!(waits[0] <= 2 * FIRST && waits.iter().all(|length| *length <= 2 * LONGEST));
        let total: Duration = waits.iter().sum();
        assert!(total > Duration::from_secs(1) && total < Duration::from_secs(8), "{total:?}");
    }

    #[test]
    fn two_contenders_do_not_keep_step() {
        let lengths = |seed| {
            let mut wait = |_| {};
            let mut backoff = Backoff::new(seed, &mut wait);
            (0..8).map(|_| backoff.next_length()).collect::<Vec<_>>()
        };
        assert!(lengths(1).iter().zip(lengths(2)).all(|(a, b)| *a != b));
    }
}
