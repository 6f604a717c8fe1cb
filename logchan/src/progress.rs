//! How far the replay has come, published without a lock.
//!
//! The replay thread stores, the receive thread reads for the next ack. The receive thread runs ahead of all others
//! (real-time priority) and may share its core with the replay thread, so it must never wait for a store that was
//! interrupted: the writer could not run to finish it. Hence a latch and no plain sequence lock: two copies,
//! of which one is whole at any moment (as Linux's `seqcount_latch`, Documentation/locking/seqlock.rst).

use crate::ack_flags::AckFlags;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// A point the backup has executed up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executed {
    /// Sequence number of the last frame executed; 0 for none.
    pub sequence: u64,
    /// The machine's position there, as the caller counts it.
    pub position: u64,
    /// Digest of the machine's exits up to that position.
    pub digest: u64,
}

/// One [`Executed`], written by one thread and read by any.
#[derive(Debug)]
pub struct Progress {
    /// Even: the first copy is whole; odd: the second.
    version: AtomicU32,
    copies: [Copied; 2],
    flags: AtomicU32,
}

/// One copy of the point.
#[derive(Debug)]
struct Copied {
    sequence: AtomicU64,
    position: AtomicU64,
    digest: AtomicU64,
}

impl Copied {
    fn new() -> Self {
        Self { sequence: AtomicU64::new(0), position: AtomicU64::new(0), digest: AtomicU64::new(0) }
    }

    fn store(&self, executed: Executed) {
        self.sequence.store(executed.sequence, Ordering::Relaxed);
        self.position.store(executed.position, Ordering::Relaxed);
        self.digest.store(executed.digest, Ordering::Relaxed);
    }

    fn load(&self) -> Executed {
        Executed {
            sequence: self.sequence.load(Ordering::Relaxed),
            position: self.position.load(Ordering::Relaxed),
            digest: self.digest.load(Ordering::Relaxed),
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Nothing executed yet.
    #[must_use]
    pub fn new() -> Self {
        Self { version: AtomicU32::new(0), copies: [Copied::new(), Copied::new()], flags: AtomicU32::new(0) }
    }

    /// Publishes a new point. To be called by one thread only.
    pub fn store(&self, executed: Executed) {
        for copy in &self.copies {
            self.turn_away();
            copy.store(executed);
        }
    }

    /// Sends readers to the copy that the writer does not touch next.
    fn turn_away(&self) {
        let version = self.version.load(Ordering::Relaxed);
        // Release: with the new version, what was written to the copy that it names. The fence: who reads any of what
        // is written from here on will find the new version.
        self.version.store(version.wrapping_add(1), Ordering::Release);
        fence(Ordering::Release);
    }

    /// The point published last: always one that was stored as a whole. Tries again only when the writer went
    /// on meanwhile, never waits for a writer that stands still.
    #[must_use]
    pub fn load(&self) -> Executed {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let executed = self.copies[(before & 1) as usize].load();
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == before {
                return executed;
            }
        }
    }

    /// Raises flags that every ack carries from now on.
    pub fn raise(&self, flags: AckFlags) {
        self.flags.fetch_or(flags.bits(), Ordering::Release);
    }

    /// The flags raised so far.
    #[must_use]
    pub fn flags(&self) -> AckFlags {
        AckFlags::from_bits(self.flags.load(Ordering::Acquire))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_reader_never_sees_half_a_point() {
        let progress = Arc::new(Progress::new());
        let writer = progress.clone();
        let thread = std::thread::spawn(move || {
            for n in 1..=200_000 {
                writer.store(Executed { sequence: n, position: n * 3, digest: !n });
            }
        });
        loop {
            let Executed { sequence, position, digest } = progress.load();
            assert_eq!(position, sequence * 3);
            assert!(sequence == 0 || digest == !sequence);
            if sequence == 200_000 {
                break;
            }
        }
        thread.join().unwrap();
    }

    /// A receive thread at real-time priority once turned for a second on the core that the writer, interrupted in
    /// the middle of a store, needed to finish it: the primary took its backup for dead.
    #[test]
    fn a_reader_does_not_wait_for_a_writer_that_was_interrupted() {
        let point = |n: u64| Executed { sequence: n, position: n * 3, digest: !n };
        let progress = Progress::new();
        progress.store(point(1));
        for (copy, expected) in [(0, point(1)), (1, point(2))] {
            progress.turn_away();
            assert_eq!(progress.load(), expected);
            progress.copies[copy].sequence.store(2, Ordering::Relaxed);
            assert_eq!(progress.load(), expected, "half of copy {copy} is written");
            progress.copies[copy].store(point(2));
            assert_eq!(progress.load(), expected);
        }
        progress.store(point(3));
        assert_eq!(progress.load(), point(3));
    }

    #[test]
    fn flags_stay_raised() {
        let progress = Progress::new();
        progress.raise(AckFlags::DIVERGED);
        progress.raise(AckFlags::GOING_DOWN);
        assert!(progress.flags().contains(AckFlags::DIVERGED));
        assert!(progress.flags().contains(AckFlags::GOING_DOWN));
    }
}
