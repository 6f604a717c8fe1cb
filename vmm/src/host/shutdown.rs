//! The wish to stop, as everything that waits can see it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// A stop that was asked for, once and for good. Clones share it.
///
/// The descriptor is readable from then on: put it into every `poll`, `epoll` and io_uring wait. A
/// vCPU thread asks [`Shutdown::requested`] at its exits.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<State>);

#[derive(Debug)]
struct State {
    requested: AtomicBool,
    event: OwnedFd,
}

/// The token of SIGTERM and SIGINT. Never freed: a handler may run at any time.
static OF_SIGNALS: OnceLock<Shutdown> = OnceLock::new();

impl Shutdown {
    /// A token that only [`Shutdown::request`] fires.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(Arc::new(State { requested: AtomicBool::new(false), event })))
    }

    /// The token that SIGTERM and SIGINT fire. The first signal asks for a clean stop; the second ends
    /// the process in the usual way, in case the clean stop hangs.
    ///
    /// # Errors
    /// When the process has no descriptor left, or the kernel refuses the handler.
    pub fn on_signals() -> io::Result<Self> {
        if let Some(token) = OF_SIGNALS.get() {
            return Ok(token.clone());
        }
        let made = Self::new()?;
        let token = OF_SIGNALS.get_or_init(|| made);
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: a zeroed sigaction is a valid one; the handler does only what is allowed in one.
            let installed = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
                // Not restarted: a vCPU in KVM_RUN or a blocking read must come back.
                action.sa_flags = libc::SA_RESETHAND;
                libc::sigaction(signal, &action, std::ptr::null_mut())
            };
            if installed < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(token.clone())
    }

    /// Asks for the stop. Allowed in a signal handler.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::SeqCst);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes, as an eventfd wants. A full counter is readable already, so that an error
        // changes nothing.
        unsafe { libc::write(self.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.requested.load(Ordering::Relaxed)
    }

    /// Waits until a stop is asked for, at most `limit`. Says whether it was.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one pollfd, borrowed for the call. An interrupted wait counts as a short one.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
        self.requested()
    }
}

impl AsFd for Shutdown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl AsRawFd for Shutdown {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

extern "C" fn on_signal(_signal: libc::c_int) {
    // SAFETY: errno belongs to the interrupted code and is put back below.
    let errno = unsafe { *libc::__errno_location() };
    if let Some(token) = OF_SIGNALS.get() {
        token.request();
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_by_every_clone_and_stays() {
        let token = Shutdown::new().unwrap();
        let other = token.clone();
        assert!(!other.requested());
        assert!(!other.wait(Duration::from_millis(1)));
        token.request();
        assert!(other.requested());
        assert!(other.wait(Duration::from_secs(60)));
        assert!(other.wait(Duration::from_secs(60)), "waiting does not use it up");
    }

    #[test]
    fn a_signal_fires_the_token_of_signals_and_no_other() {
        let quiet = Shutdown::new().unwrap();
        let token = Shutdown::on_signals().unwrap();
        assert!(!token.requested());
        // SAFETY: a signal to this thread, with a handler installed above.
        unsafe { libc::raise(libc::SIGTERM) };
        assert!(token.wait(Duration::from_secs(60)));
        assert!(Shutdown::on_signals().unwrap().requested());
        assert!(!quiet.requested());
    }
}
