//! What carries the bytes.
//!
//! A connection is split into halves that live on different threads. The primary's vCPU thread owns
//! the [`SendHalf`] and sends straight from its own context; the primary's I/O thread owns the
//! [`ReceiveHalf`] and hears the acks. The backup's receive thread owns a [`Duplex`]: it receives the
//! log and replies with acks, one system call for both.
//!
//! A transport moves a byte stream, in order. Frames, checksums and sequence numbers are the business
//! of [`crate::primary`] and [`crate::backup`].

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

mod buffer;

#[cfg(all(test, not(loom)))]
mod suite;

#[cfg(all(test, not(loom)))]
mod placing;

// Within one process, for tests: with delay, cut and corruption on demand.
pub mod inproc;

// One-sided writes into the peer's memory.
#[cfg(feature = "rdma")]
pub mod rdma;

// A Noise session around any other transport.
pub mod sealed;

// TCP over io_uring.
pub mod tcp;

/// Why a transport failed.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The peer closed the stream in good order.
    #[error("the peer closed the connection")]
    Closed,
    /// The kernel reports an error.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// io_uring is switched off for this process.
    #[error(
        "io_uring is not available ({source}): needs Linux 6.0 or newer, sysctl kernel.io_uring_disabled=0 \
         (or =1 and membership in kernel.io_uring_group), and a seccomp or container policy that allows it"
    )]
    NoUring {
        /// What the kernel said.
        source: io::Error,
    },
    /// A receiving half was moved to another thread after its first wait.
    #[error("this receiving half belongs to the thread that waited on it first")]
    WrongThread,
    /// Bytes were still unsent when patience ended.
    #[error("{unsent} bytes were not taken by the network within {patience:?}")]
    Unsent {
        /// Bytes left.
        unsent: usize,
        /// How long it was tried.
        patience: Duration,
    },
    /// An RDMA operation failed.
    #[error("cannot {doing} by RDMA: {why}")]
    Rdma {
        /// What was tried.
        doing: &'static str,
        /// What the device or rdma_cm said.
        why: String,
    },
    /// The peer's RDMA writes say what cannot be true.
    #[error("the peer breaks the rules of the RDMA rings: {0}")]
    Nonsense(&'static str),
    /// A sealed chunk does not open: damaged, forged, or out of order.
    #[error("an encrypted chunk does not open: it was damaged or forged on its way")]
    Seal,
}

impl TransportError {
    pub(crate) const fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// The sending half of a connection. No method waits, except [`SendHalf::finish`].
///
/// Bytes are written straight into the buffer they are sent from: `room`, then `commit`.
pub trait SendHalf: Send + fmt::Debug {
    /// Free buffer space, contiguous and aligned to [`crate::frame::ALIGN`] as long as all commits are
    /// multiples of that.
    fn room(&mut self) -> &mut [u8];

    /// Appends the first `len` bytes of the room to the stream. They stay in the buffer until `flush`.
    fn commit(&mut self, len: usize);

    /// Bytes committed and not yet taken by the network.
    fn queued(&self) -> usize;

    /// Bytes the buffer can hold.
    fn capacity(&self) -> usize;

    /// Starts sending everything committed. What the network cannot take now it takes later, without
    /// further calls.
    ///
    /// # Errors
    /// The connection is broken. Errors of earlier flushes may show up here.
    fn flush(&mut self) -> Result<(), TransportError>;

    /// Sends what was committed if the network takes it now; otherwise it waits for company, and for a
    /// later `offer` or `flush`.
    ///
    /// # Errors
    /// As [`SendHalf::flush`].
    fn offer(&mut self) -> Result<(), TransportError> {
        self.flush()
    }

    /// Flushes, waits until the network has taken all bytes, and ends the stream, so that the peer
    /// reads all of it and then [`TransportError::Closed`].
    ///
    /// # Errors
    /// [`TransportError::Unsent`] when `patience` ends first, or the connection is broken.
    fn finish(&mut self, patience: Duration) -> Result<(), TransportError>;
}

/// What ended a [`ReceiveHalf::wait`]. Nothing set: the timeout, or no reason at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// New bytes are in [`ReceiveHalf::data`].
    pub data: bool,
    /// A [`Waker`] was used.
    pub woken: bool,
    /// The descriptor given to [`ReceiveHalf::watch`] is readable.
    pub watched: bool,
}

/// The receiving half of a connection.
pub trait ReceiveHalf: Send + fmt::Debug {
    /// Waits for bytes, a [`Waker`], or the timeout (none: for ever), whichever comes first; one
    /// system call. Without room for bytes it waits for the other two.
    ///
    /// # Errors
    /// The connection is broken or was closed. Bytes received before stay in [`Self::data`].
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError>;

    /// Bytes received and not consumed, at no particular alignment.
    fn data(&self) -> &[u8];

    /// Drops the first `len` bytes of [`Self::data`].
    fn consume(&mut self, len: usize);

    /// Something that ends a wait from any thread.
    fn waker(&self) -> Waker;

    /// Bytes of this side's own stream, from its start, of which the transport knows by itself that they
    /// are in the peer's memory. A wait ends when it is more. `None`: it does not know, only the peer's
    /// replies tell.
    fn placed(&self) -> Option<u64> {
        None
    }

    /// For looks, from another thread, at what has come. `None`: the transport cannot be looked into, or what
    /// it would show is not the stream itself.
    fn glance(&self) -> Option<Glance> {
        None
    }

    /// From now on a wait also ends when this descriptor is readable: an epoll descriptor brings a
    /// whole set of them into the same wait.
    ///
    /// # Errors
    /// The transport cannot watch descriptors.
    fn watch(&mut self, _fd: OwnedFd) -> Result<(), TransportError> {
        Err(TransportError::io("watch a descriptor")(io::ErrorKind::Unsupported.into()))
    }
}

/// A receiving half that can reply on the same connection: the backup's end.
pub trait Duplex: ReceiveHalf {
    /// Queues bytes to be sent with the next [`ReceiveHalf::wait`] or [`Self::push`]. `false`: there is
    /// no room because the network does not take earlier replies; nothing was queued.
    ///
    /// # Errors
    /// The connection is broken.
    fn reply(&mut self, bytes: &[u8]) -> Result<bool, TransportError>;

    /// Sends queued replies now, without waiting.
    ///
    /// # Errors
    /// The connection is broken.
    fn push(&mut self) -> Result<(), TransportError>;

    /// Takes nothing more from the peer: nothing that it sends from now on is [placed](ReceiveHalf::placed).
    /// Waits hand out all that was, and then fail. `false`: the transport cannot do that, because it places
    /// nothing.
    fn shut(&mut self) -> bool {
        false
    }
}

/// Appends `bytes` to a sending half as a whole, or not at all.
fn queue_whole(half: &mut impl SendHalf, bytes: &[u8]) -> bool {
    let Some(room) = half.room().get_mut(..bytes.len()) else { return false };
    room.copy_from_slice(bytes);
    half.commit(bytes.len());
    true
}

impl<T: SendHalf + ?Sized> SendHalf for Box<T> {
    fn room(&mut self) -> &mut [u8] {
        (**self).room()
    }

    fn commit(&mut self, len: usize) {
        (**self).commit(len);
    }

    fn queued(&self) -> usize {
        (**self).queued()
    }

    fn capacity(&self) -> usize {
        (**self).capacity()
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        (**self).flush()
    }

    fn offer(&mut self) -> Result<(), TransportError> {
        (**self).offer()
    }

    fn finish(&mut self, patience: Duration) -> Result<(), TransportError> {
        (**self).finish(patience)
    }
}

impl<T: ReceiveHalf + ?Sized> ReceiveHalf for Box<T> {
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        (**self).wait(timeout)
    }

    fn data(&self) -> &[u8] {
        (**self).data()
    }

    fn consume(&mut self, len: usize) {
        (**self).consume(len);
    }

    fn waker(&self) -> Waker {
        (**self).waker()
    }

    fn placed(&self) -> Option<u64> {
        (**self).placed()
    }

    fn glance(&self) -> Option<Glance> {
        (**self).glance()
    }

    fn watch(&mut self, fd: OwnedFd) -> Result<(), TransportError> {
        (**self).watch(fd)
    }
}

impl<T: Duplex + ?Sized> Duplex for Box<T> {
    fn reply(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        (**self).reply(bytes)
    }

    fn push(&mut self) -> Result<(), TransportError> {
        (**self).push()
    }

    fn shut(&mut self) -> bool {
        (**self).shut()
    }
}

/// Looks, from any thread, at what no wait has taken in yet.
#[derive(Clone, Debug)]
pub enum Glance {
    /// At bytes of a [`ReceiveHalf`]'s stream.
    Stream(Peek),
    /// At how much of this side's own stream is placed.
    Placed(Arc<dyn Placing>),
}

/// Who knows of own bytes that they are in the peer's memory.
pub trait Placing: std::fmt::Debug + Send + Sync {
    /// As [`ReceiveHalf::placed`], by a look of its own. Nothing more where the connection is broken, which the next wait tells.
    fn placed_by_now(&self) -> u64;
}

/// Looks at bytes of a socket.
#[derive(Clone, Debug)]
pub struct Peek(Arc<OwnedFd>);

impl Peek {
    pub(crate) const fn new(socket: Arc<OwnedFd>) -> Self {
        Self(socket)
    }

    /// Copies the first of these bytes, and leaves them where they are; one system call, which does not wait. How many
    /// they are: none also where the connection is broken, which the next wait tells.
    #[must_use]
    pub fn look(&self, bytes: &mut [u8]) -> usize {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is valid for its length.
        let seen = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) };
        usize::try_from(seen).unwrap_or(0)
    }
}

/// Ends a [`ReceiveHalf::wait`] from another thread. Uses before the wait count too; several uses may
/// end one wait.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn new() -> Result<Self, TransportError> {
        // SAFETY: eventfd has no preconditions; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(TransportError::io("create an eventfd")(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Ends the wait.
    pub fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight readable bytes. The write can only fail or block at a count of 2^64 - 2.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes in all wakes so far without waiting: whether there were any.
    pub(crate) fn drain(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits for a wake, at most so long, in whole milliseconds: whether there was one. All so far are
    /// taken in.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = timeout.as_millis().min(i32::MAX as u128) as i32;
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, millis) } != 1 {
            return false;
        }
        let mut count = [0_u8; 8];
        // SAFETY: eight writable bytes; poll said that it does not block, and only one thread drains.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) == 8 }
    }
}
