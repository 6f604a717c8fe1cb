//! Sleeping until another thread has news.
//!
//! The sleeper follows "look, check, wait":
//!
//! ```text
//! loop {
//!     let seen = bell.look();            // prepare
//!     if there_is_work() { break }       // check, after looking
//!     bell.wait(seen, timeout);          // sleeps only if nobody rang since the look
//! }
//! ```
//!
//! The other thread publishes its work and then rings. No ring is lost: one that comes before the
//! look has its work seen by the check (the look acquires what the ring released); one that comes
//! after changes the count, and the wait returns at once, because raising the sleeping bit and the
//! kernel's own comparison both fail on a changed word. `tests/loom.rs` checks this exhaustively.
//! Wakes may be spurious; the loop takes care of those.

use std::time::{Duration, Instant};

use crate::sync::{AtomicU32, Ordering, spin_loop};

/// A counter of rings, and whether someone sleeps. Ringing costs one atomic operation, and a system
/// call only if someone sleeps.
#[derive(Debug)]
pub struct Doorbell {
    /// Bit 0: someone sleeps. The rest: rings, wrapping.
    word: AtomicU32,
    sleep: Sleep,
}

const SLEEPING: u32 = 1;
const ONE_RING: u32 = 2;

/// Looks between two at the clock, each with a pause of the core: some microseconds.
const LOOKS: u32 = 64;

/// What a look saw; handed to [`Doorbell::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u32);

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

impl Doorbell {
    /// A bell nobody has rung.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU32::new(0), sleep: Sleep::new() }
    }

    /// How often it was rung. Call this before checking for work.
    #[must_use]
    pub fn look(&self) -> Seen {
        Seen(self.word.load(Ordering::Acquire) & !SLEEPING)
    }

    /// Whether someone sleeps, so that a ring would cost a system call.
    #[must_use]
    pub fn has_sleeper(&self) -> bool {
        self.word.load(Ordering::Relaxed) & SLEEPING != 0
    }

    /// Wakes whoever sleeps, and keeps whoever has looked and not yet slept from sleeping.
    pub fn ring(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let rung = word.wrapping_add(ONE_RING) & !SLEEPING;
            match self.word.compare_exchange_weak(word, rung, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if word & SLEEPING != 0 {
            self.sleep.wake(&self.word);
        }
    }

    /// Sleeps until the bell is rung, if it was not since `seen`, or until the timeout (none: for ever).
    /// May return early for no reason.
    pub fn wait(&self, seen: Seen, timeout: Option<Duration>) {
        let asleep = seen.0 | SLEEPING;
        let raised = self.word.compare_exchange(seen.0, asleep, Ordering::Relaxed, Ordering::Relaxed);
        match raised {
            Ok(_) => {}
            Err(word) if word == asleep => {}
            Err(_) => return,
        }
        self.sleep.wait(&self.word, asleep, timeout);
    }

    /// As [`Self::wait`], but looks for so long before it sleeps, on top of the timeout. Who else wants the core has it meanwhile.
    pub fn poll_then_wait(&self, seen: Seen, window: Duration, timeout: Option<Duration>) {
        if !window.is_zero() {
            let began = Instant::now();
            while began.elapsed() < window {
                for _ in 0..LOOKS {
                    if self.look() != seen {
                        return;
                    }
                    spin_loop();
                }
                std::thread::yield_now();
            }
        }
        self.wait(seen, timeout);
    }
}

/// futex(2): sleeps only while the word still has the value expected, compared under the kernel's lock.
#[cfg(not(loom))]
#[derive(Debug)]
struct Sleep;

#[cfg(not(loom))]
impl Sleep {
    const fn new() -> Self {
        Self
    }

    fn wait(&self, word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        let timeout = timeout.map(|t| libc::timespec {
            tv_sec: t.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the word and the timespec outlive the call. Every outcome (woken, value changed,
        // timed out, interrupted) means "return to the caller's loop".
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                expected,
                timeout,
            );
        }
    }

    fn wake(&self, word: &AtomicU32) {
        // SAFETY: the word outlives the call.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                i32::MAX,
            );
        }
    }
}

/// The kernel's futex as loom can check it: the comparison and the going to sleep are one step.
#[cfg(loom)]
#[derive(Debug)]
struct Sleep {
    lock: loom::sync::Mutex<()>,
    queue: loom::sync::Condvar,
}

#[cfg(loom)]
impl Sleep {
    fn new() -> Self {
        Self { lock: loom::sync::Mutex::new(()), queue: loom::sync::Condvar::new() }
    }

    fn wait(&self, word: &AtomicU32, expected: u32, _timeout: Option<Duration>) {
        let guard = self.lock.lock().unwrap();
        if word.load(Ordering::Relaxed) == expected {
            drop(self.queue.wait(guard).unwrap());
        }
    }

    fn wake(&self, _word: &AtomicU32) {
        let _guard = self.lock.lock().unwrap();
        self.queue.notify_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    #[test]
    fn a_ring_after_the_look_keeps_the_wait_from_sleeping() {
        let bell = Doorbell::new();
        let seen = bell.look();
        bell.ring();
        bell.wait(seen, None);
        assert_ne!(bell.look(), seen);
        assert!(!bell.has_sleeper());
    }

    #[test]
    fn a_wait_ends_at_its_timeout() {
        let bell = Doorbell::new();
        let start = Instant::now();
        bell.wait(bell.look(), Some(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(19));
        bell.wait(bell.look(), Some(Duration::from_millis(1)));
        bell.ring();
        assert!(!bell.has_sleeper());
    }

    #[test]
    fn no_ring_is_lost_between_two_threads() {
        const ROUNDS: u64 = 20_000;
        let shared = Arc::new((Doorbell::new(), AtomicU64::new(0), Doorbell::new(), AtomicU64::new(0)));
        let echo = shared.clone();
        let thread = std::thread::spawn(move || {
            for round in 1..=ROUNDS {
                wait_for(&echo.0, &echo.1, round);
                echo.3.store(round, std::sync::atomic::Ordering::Release);
                echo.2.ring();
            }
        });
        for round in 1..=ROUNDS {
            shared.1.store(round, std::sync::atomic::Ordering::Release);
            shared.0.ring();
            wait_for(&shared.2, &shared.3, round);
        }
        thread.join().unwrap();
    }

    fn wait_for(bell: &Doorbell, value: &AtomicU64, wanted: u64) {
        loop {
            let seen = bell.look();
            if value.load(std::sync::atomic::Ordering::Acquire) >= wanted {
                return;
            }
            bell.poll_then_wait(seen, Duration::from_micros(3), None);
        }
    }
}
