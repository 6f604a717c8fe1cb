//! The feeding thread: waits for the host's descriptors and feeds the vCPU.
//!
//! An ordinary thread also beside a side thread that runs ahead: so the packets of a busy client come to
//! the guest in batches, and not each with a switch of its own.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;
use std::time::Duration;

use super::feed::{Fed, Feed};
use crate::host::shutdown::Shutdown;

/// The token of the shutdown descriptor.
const SHUTDOWN: u64 = u64::MAX - 1;

/// How long to leave a full ring alone.
const FULL_PAUSE: Duration = Duration::from_micros(100);

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds a descriptor, to be told by `token` when it is readable.
    ///
    /// # Errors
    /// When the descriptor cannot be waited for: a plain file, say.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: the event is valid for the call.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes a descriptor out.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: no pointers are passed. A descriptor that is not in the set is no harm.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// Waits until some are readable, or for `limit` milliseconds (negative: for ever). The tokens.
    ///
    /// # Errors
    /// When the kernel refuses; an interruption is no error.
    pub fn wait<'a>(&self, ready: &'a mut [u64; 16], limit: i32) -> io::Result<&'a [u64]> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: the buffer is valid for its length.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 16, limit) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(&[]) } else { Err(error) };
        };
        for (token, event) in ready.iter_mut().zip(&events[..count]) {
            *token = event.u64;
        }
        Ok(&ready[..count])
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The running thread; dropped, it ends.
#[derive(Debug)]
pub struct Pump {
    stop: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Pump {
    /// Starts the thread. When `shutdown` fires, or the feed fails, `ended` is called on it.
    ///
    /// # Errors
    /// When the kernel has no thread or descriptor left.
    pub fn start(
        feed: Feed,
        shutdown: Option<&Shutdown>,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (fd, token) in feed.descriptors() {
            // Standard input may be a plain file, which is always ready and cannot be waited for.
            match epoll.add(fd, token as u64) {
                Err(error) if error.raw_os_error() != Some(libc::EPERM) => return Err(error),
                _ => {}
            }
        }
        let stop = Shutdown::new()?;
        if let Some(shutdown) = shutdown {
            epoll.add(shutdown.as_raw_fd(), SHUTDOWN)?;
        }
        epoll.add(stop.as_raw_fd(), SHUTDOWN)?;
        let thread = std::thread::Builder::new().name("tandem-io".to_owned()).spawn(move || {
            if let Err(error) = pump(feed, &epoll) {
                tracing::error!(%error, "the guest's devices cannot be served any more");
            }
            ended();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported already.
            let _ = thread.join();
        }
    }
}

fn pump(mut feed: Feed, epoll: &Epoll) -> io::Result<()> {
    let mut ready = [0; 16];
    loop {
        for &token in epoll.wait(&mut ready, -1)? {
            if token == SHUTDOWN {
                return Ok(());
            }
            if feed.feed(token as usize)? == Fed::Full {
                std::thread::sleep(FULL_PAUSE);
            }
            if !feed.descriptors().any(|(_, t)| t as u64 == token) {
                epoll.remove(libc::STDIN_FILENO);
            }
        }
    }
}
