//! Whether the two cores run at the same time.
//!
//! Emulated CPUs are threads of an emulator. Where two of them share one core, or the machine does other things too, a round trip
//! between them waits for that machine's scheduler, milliseconds, while what one of them does by itself does not: ratios
//! between the two mean nothing then. So two threads, one on each core, hand a number to and fro and look all the time:
//! a hand-over that takes long is time in which one of the cores stood still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::pin;

/// How long one look takes.
const LOOK: Duration = Duration::from_millis(20);
/// Cores that run need less for a hand-over and back: in software emulation some microseconds, and a millisecond when a
/// timer ticks. A scheduler that has another thread for the core takes longer.
const SLOW: Duration = Duration::from_millis(2);
/// Of the time, for one of the cores. Two emulated CPUs on one core: all of it.
const MOST_AWAY: f64 = 0.2;

/// What all looks came to.
#[derive(Debug, Default)]
pub(super) struct Together {
    looked: Duration,
    away: Duration,
}

impl Together {
    /// Looks once more. On the thread that runs on the one core; `other` is the other one.
    ///
    /// # Errors
    /// There is no such core.
    pub(super) fn look(&mut self, other: usize) -> Result<()> {
        const OVER: u64 = u64::MAX;
        let number = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&number);
        let answers = std::thread::spawn(move || {
            let _pinned = pin::to_core(other)?;
            loop {
                match theirs.load(Ordering::Acquire) {
                    OVER => return anyhow::Ok(()),
                    odd if odd % 2 == 1 => theirs.store(odd + 1, Ordering::Release),
                    _ => std::hint::spin_loop(),
                }
            }
        });
        let mut trips = Vec::new();
        let began = Instant::now();
        let mut next = 0;
        // The first is the other thread's start.
        while trips.len() < 2 || began.elapsed() < LOOK {
            let sent = Instant::now();
            number.store(next + 1, Ordering::Release);
            next += 2;
            while number.load(Ordering::Acquire) != next && !answers.is_finished() {
                std::hint::spin_loop();
            }
            trips.push(sent.elapsed());
            if answers.is_finished() {
                break;
            }
        }
        number.store(OVER, Ordering::Release);
        answers.join().map_err(|_| anyhow!("the thread on the other core panicked"))??;
        self.note(&trips[1..]);
        Ok(())
    }

    fn note(&mut self, trips: &[Duration]) {
        self.looked += trips.iter().sum::<Duration>();
        self.away += trips.iter().filter(|&&trip| trip > SLOW).sum::<Duration>();
    }

    /// The part of the time for which one of the cores stood still.
    pub(super) fn away(&self) -> f64 {
        let away = self.away.as_secs_f64() / self.looked.as_secs_f64();
        if away.is_nan() { 0.0 } else { (away * 1000.0).round() / 1000.0 }
    }

    /// Why the figures mean nothing, if so.
    pub(super) fn doubt(&self) -> Option<String> {
        (self.away() > MOST_AWAY).then(|| {
            format!(
                "this machine is too busy to run both cores at once: one of them stood still for {:.0} % of the time (at most \
                 {:.0} %)",
                self.away() * 100.0,
                MOST_AWAY * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_hand_overs_are_time_in_which_a_core_stood_still() {
        let mut together = Together::default();
        assert_eq!((together.away(), together.doubt()), (0.0, None));
        together.note(&[Duration::from_micros(5); 3200]);
        together.note(&[Duration::from_millis(4)]);
        assert_eq!((together.away(), together.doubt()), (0.2, None));
        together.note(&[Duration::from_millis(12)]);
        assert_eq!(together.away(), 0.5);
        let why = together.doubt().unwrap();
        assert!(why.contains("50 %"), "{why}");
    }

    #[test]
    fn two_threads_on_one_core_do_not_run_at_the_same_time() {
        let _pinned = pin::to_core(0).unwrap();
        let mut together = Together::default();
        for _ in 0..3 {
            together.look(0).unwrap();
        }
        assert!(together.doubt().is_some(), "{together:?}");
    }
}
