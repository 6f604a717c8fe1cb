//! What leaves the host only while a lease holds.
//!
//! The role's lease ([`crate::role::lease`]) says until when outputs may leave. Threads that let them out look at its end here, and make their
//! system call at once after the look or not at all (`restartable`): a process that was stopped, and goes on after its backup went
//! live, lets nothing out that it had in hand.
//!
//! What that does not reach: a system call that is under way, where the kernel itself is held up for longer than
//! [`Timing::slack`](crate::role::timing::Timing::slack), and a host that stands still as a whole (a paused virtual machine), whose kernel does not
//! know it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::EnterFlags;

use super::clock::local;

mod restartable;

/// Whether threads of this process can let outputs out in one step with their look at the lease: the kernel has `CONFIG_RSEQ`, and
/// the C library (glibc from 2.35) registers its threads.
#[must_use]
pub fn in_one_step() -> bool {
    restartable::are_to_be_had()
}

/// Until when outputs may leave, in nanoseconds of the local clock.
#[derive(Debug)]
pub struct LeaseEnd(AtomicU64);

/// A system call that was made in time.
#[derive(Debug)]
pub struct Made {
    /// When the lease was looked at, in nanoseconds of the local clock.
    pub at: u64,
    /// What the kernel said.
    pub result: io::Result<usize>,
}

impl LeaseEnd {
    /// Nothing may leave.
    #[must_use]
    pub const fn past() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Everything may leave, for ever: nobody else runs this machine.
    #[must_use]
    pub const fn never() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// From now on it ends at `until`.
    pub fn set(&self, until: u64) {
        self.0.store(until, Ordering::Release);
    }

    /// The time now, if it holds.
    #[must_use]
    pub fn holds(&self) -> Option<u64> {
        let now = local();
        (now < self.0.load(Ordering::Acquire)).then_some(now)
    }

    /// write(2). `None`: the lease has ended, nothing was written.
    #[must_use]
    pub fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Option<Made> {
        let args = [file.as_raw_fd() as u64, bytes.as_ptr().addr() as u64, bytes.len() as u64];
        // SAFETY: writes bytes that are there to a file that is open.
        unsafe { self.call(libc::SYS_write, &args) }
    }

    /// pwrite(2). `None`: the lease has ended, nothing was written.
    #[must_use]
    pub fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Option<Made> {
        let args = [file.as_raw_fd() as u64, bytes.as_ptr().addr() as u64, bytes.len() as u64, offset];
        // SAFETY: writes bytes that are there to a file that is open.
        unsafe { self.call(libc::SYS_pwrite64, &args) }
    }

    /// io_uring_enter(2): hands `count` requests that are in the ring to the kernel and waits until so many are done. `None`: the
    /// lease has ended, and they are in the ring still.
    ///
    /// # Safety
    /// What the requests point to must stay until they are done.
    #[must_use]
    pub unsafe fn submit(&self, ring: RawFd, count: u32) -> Option<Made> {
        let wait = u64::from(EnterFlags::GETEVENTS.bits());
        let args = [ring as u64, u64::from(count), u64::from(count), wait, 0, 0];
        // SAFETY: the caller's promise; no signal set, no further argument.
        unsafe { self.call(libc::SYS_io_uring_enter, &args) }
    }

    /// # Safety
    /// As [`restartable::call`].
    unsafe fn call(&self, number: i64, args: &[u64]) -> Option<Made> {
        let mut call = [0; 7];
        call[0] = number as u64;
        call[1..=args.len()].copy_from_slice(args);
        // SAFETY: the caller's promise.
        let (at, done) = unsafe { restartable::call(&call, || self.holds()) }?;
        let result = usize::try_from(done).map_err(|_| io::Error::from_raw_os_error(-done as i32));
        Some(Made { at, result })
    }
}

#[cfg(test)]
mod tests;
