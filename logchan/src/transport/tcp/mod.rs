//! TCP over io_uring.
//!
//! Sending is one `io_uring_enter` per flush, from the thread that flushes; small frames are copied by
//! the kernel on the spot, large runs go out by zero copy, and nobody waits for the notifications.
//! Receiving is one `io_uring_enter` per wake-up, which at the same time sends the queued replies,
//! takes the next bytes, and waits for whichever comes first of data, a [`super::Waker`] or a timeout.
//! Socket and eventfd are registered with the ring, so the kernel need not look them up again.
//!
//! A dead peer is noticed by heartbeats, not by TCP: no keep-alive and no user timeout is set.

use io_uring::{IoUring, Probe, opcode, squeue};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::TransportError;
use super::buffer::Memory;
use crate::frame::MAX_FRAME;

mod provided;
mod receive;
mod send;

pub use receive::{TcpDuplex, TcpReceive};
pub use send::TcpSend;

/// How a TCP transport behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Bytes the sender buffers at most while the network takes none; at least two frames of the
    /// largest size, whatever is asked for.
    pub send_buffer: usize,
    /// Runs of at least so many bytes are sent by zero copy, `usize::MAX` for never. It is given up on
    /// a connection as soon as the kernel says that it copied all the same, as loopback does.
    pub zero_copy_from: usize,
    /// How long a receiver turns before it sleeps, `Duration::MAX` for ever. For a thread with a core of its own.
    pub spin: Duration,
    /// How a receiver takes bytes in.
    pub receive: Receive,
    /// The send buffer is registered with the kernel, which then need not find and pin the pages of each zero-copy
    /// send. All of the buffer is locked into memory for that.
    pub registered: bool,
    /// While a receiver waits, the kernel polls the network card's queue for so long instead of waiting for its
    /// interrupt (NAPI busy polling, Linux 6.9); zero for never. No use over loopback, which has no queue.
    pub busy_poll: Duration,
}

/// How a receiver takes bytes in. What the kernel cannot do becomes [`Receive::Plain`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receive {
    /// One operation for each wait.
    #[default]
    Plain,
    /// The same into memory that is registered with the kernel.
    Registered,
    /// One operation for many waits (multishot), into a ring of provided buffers. Linux 6.12.
    Multishot,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            send_buffer: 16 << 20,
            zero_copy_from: 64 << 10,
            spin: Duration::ZERO,
            receive: Receive::default(),
            registered: false,
            busy_poll: Duration::ZERO,
        }
    }
}

impl TcpConfig {
    fn buffer_len(&self) -> usize {
        self.send_buffer.max(2 * MAX_FRAME)
    }
}

/// Connects to a backup, trying all addresses of the name within `patience`.
///
/// # Errors
/// None of the addresses answered; the last one's reason.
pub fn connect(to: impl ToSocketAddrs, patience: Duration) -> Result<TcpStream, TransportError> {
    let failed = TransportError::io("connect to the backup");
    let deadline = Instant::now() + patience;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let addresses = match to.to_socket_addrs() {
        Ok(addresses) => addresses,
        Err(error) => return Err(failed(error)),
    };
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// The primary's two halves of a connected stream, after the handshake.
///
/// # Errors
/// [`TransportError::NoUring`], or the kernel refuses a socket option or a registration.
pub fn primary(stream: TcpStream, config: &TcpConfig) -> Result<(TcpSend, TcpReceive), TransportError> {
    let socket = prepare(stream)?;
    Ok((TcpSend::new(Arc::clone(&socket), config)?, TcpReceive::new(socket, config)?))
}

/// The backup's end of a connected stream, after the handshake.
///
/// # Errors
/// As [`primary`].
pub fn backup(stream: TcpStream, config: &TcpConfig) -> Result<TcpDuplex, TransportError> {
    TcpDuplex::new(prepare(stream)?, config)
}

/// Whether this process may use io_uring with everything the transport needs.
///
/// # Errors
/// [`TransportError::NoUring`] with the kernel's reason.
pub fn probe() -> Result<(), TransportError> {
    ring(&mut plain_builder(), 4).map(|_| ())
}

fn prepare(stream: TcpStream) -> Result<Arc<OwnedFd>, TransportError> {
    stream.set_nodelay(true).map_err(TransportError::io("set TCP_NODELAY"))?;
    // Non-blocking sockets make io_uring fail with EAGAIN instead of waiting.
    stream.set_nonblocking(false).map_err(TransportError::io("make the socket blocking"))?;
    Ok(Arc::new(OwnedFd::from(stream)))
}

fn plain_builder() -> io_uring::Builder {
    IoUring::builder()
}

fn ring(builder: &mut io_uring::Builder, entries: u32) -> Result<IoUring, TransportError> {
    let ring = builder.build(entries).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => TransportError::NoUring { source },
        _ => TransportError::io("set up io_uring")(source),
    })?;
    // Zero-copy sends came with Linux 6.0, after everything else that is used here.
    let mut known = Probe::new();
    let probed = ring.submitter().register_probe(&mut known);
    if probed.is_ok() && known.is_supported(opcode::SendZc::CODE) {
        Ok(ring)
    } else {
        Err(TransportError::NoUring { source: io::Error::from_raw_os_error(libc::ENOSYS) })
    }
}

/// Registers one piece of memory with a ring; what operations name as buffer 0 from then on.
fn register(ring: &IoUring, memory: &Memory) -> io::Result<()> {
    let whole = libc::iovec { iov_base: memory.at(0).cast(), iov_len: memory.len() };
    // SAFETY: the memory is valid; the kernel pins its pages, so that they outlive even `memory`.
    unsafe { ring.submitter().register_buffers(&[whole]) }
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> Result<(), TransportError> {
    // SAFETY: callers keep buffers alive until the operation's completion was seen, or leak them.
    unsafe { ring.submission().push(entry) }
        .map_err(|_| TransportError::io("queue an io_uring operation")(io::ErrorKind::WouldBlock.into()))
}

/// Cancels everything in flight and waits shortly until nothing is. `false`: the kernel may still use
/// the buffers, so they must not be freed.
fn cancel_all(
    ring: &mut IoUring,
    mut in_flight: usize,
    mut finished: impl FnMut(&io_uring::cqueue::Entry) -> bool,
) -> bool {
    let patience = Duration::from_millis(200);
    if in_flight > 0 {
        let _ = ring.submit();
        let any = io_uring::types::CancelBuilder::any();
        let _ = ring.submitter().register_sync_cancel(Some(patience.into()), any);
    }
    let deadline = Instant::now() + patience;
    while in_flight > 0 && Instant::now() < deadline {
        let done = ring.completion().filter(|entry| finished(entry)).count();
        in_flight = in_flight.saturating_sub(done);
        if in_flight > 0 {
            let step = io_uring::types::Timespec::from(Duration::from_millis(10));
            let args = io_uring::types::SubmitArgs::new().timespec(&step);
            if let Err(error) = ring.submitter().submit_with_args(1, &args)
                && !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR))
            {
                break;
            }
        }
    }
    in_flight == 0
}

#[cfg(all(test, not(loom)))]
mod tests;
