//! How far the replay has come, published without a lock.
//!
//! The replay thread stores, the receive thread reads for the next ack. A sequence lock: the writer
//! never waits, the reader tries again if it met a write.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, spin_loop};

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
    /// Odd while a write is under way.
    version: AtomicU32,
    sequence: AtomicU64,
    position: AtomicU64,
    digest: AtomicU64,
    flags: AtomicU32,
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
        Self {
            version: AtomicU32::new(0),
            sequence: AtomicU64::new(0),
            position: AtomicU64::new(0),
            digest: AtomicU64::new(0),
            flags: AtomicU32::new(0),
        }
    }

    /// Publishes a new point. To be called by one thread only.
    pub fn store(&self, executed: Executed) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.sequence.store(executed.sequence, Ordering::Relaxed);
        self.position.store(executed.position, Ordering::Relaxed);
        self.digest.store(executed.digest, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// The point published last: always one that was stored as a whole.
    #[must_use]
    pub fn load(&self) -> Executed {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let executed = Executed {
                sequence: self.sequence.load(Ordering::Relaxed),
                position: self.position.load(Ordering::Relaxed),
                digest: self.digest.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.version.load(Ordering::Relaxed) == before {
                return executed;
            }
            spin_loop();
        }
    }

    /// Raises flags that every ack carries from now on.
    pub fn raise(&self, flags: crate::ack::AckFlags) {
        self.flags.fetch_or(flags.bits(), Ordering::Release);
    }

    /// The flags raised so far.
    #[must_use]
    pub fn flags(&self) -> crate::ack::AckFlags {
        crate::ack::AckFlags::from_bits(self.flags.load(Ordering::Acquire))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::ack::AckFlags;
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

    #[test]
    fn flags_stay_raised() {
        let progress = Progress::new();
        progress.raise(AckFlags::DIVERGED);
        progress.raise(AckFlags::GOING_DOWN);
        assert!(progress.flags().contains(AckFlags::DIVERGED));
        assert!(progress.flags().contains(AckFlags::GOING_DOWN));
    }
}
