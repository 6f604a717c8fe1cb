//! The sending half.

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{TcpConfig, cancel_all, plain_builder, push, register, ring};
use crate::transport::buffer::SendBuffer;
use crate::transport::{SendHalf, TransportError};

/// Sends that may be under way at a time. Further flushes leave their bytes to later ones.
const MAX_IN_FLIGHT: usize = 1024;
const SENDING: &str = "send to the peer";
/// IORING_SEND_ZC_REPORT_USAGE: tell in the notification whether bytes were copied after all.
const REPORT_USAGE: u16 = 1 << 3;
/// IORING_NOTIF_USAGE_ZC_COPIED: they were.
const COPIED: u32 = 1 << 31;

/// One send the kernel has not finished with.
#[derive(Debug)]
struct Sending {
    len: usize,
    /// All bytes are in the socket.
    sent: bool,
    /// The kernel does not read the bytes any more.
    free: bool,
}

/// The sending half of a TCP connection: one system call per flush, no waiting.
///
/// A send that the socket cannot take is finished by the kernel later, in the context of the thread
/// that flushed it; sends behind it wait their turn (IOSQE_IO_DRAIN).
pub struct TcpSend {
    ring: IoUring,
    socket: Arc<OwnedFd>,
    /// Leaked rather than freed if the kernel may still read it.
    buffer: ManuallyDrop<SendBuffer>,
    in_flight: VecDeque<Sending>,
    /// `user_data` of the oldest send in flight.
    oldest: u64,
    zero_copy_from: usize,
    /// Number of the registered buffer that all of `buffer` is.
    registered: Option<u16>,
    broken: bool,
}

impl std::fmt::Debug for TcpSend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { buffer, in_flight, zero_copy_from, broken, .. } = self;
        f.debug_struct("TcpSend")
            .field("queued", &buffer.queued())
            .field("in_flight", &in_flight.len())
            .field("zero_copy_from", zero_copy_from)
            .field("broken", broken)
            .finish_non_exhaustive()
    }
}

impl TcpSend {
    pub(super) fn new(socket: Arc<OwnedFd>, config: &TcpConfig) -> Result<Self, TransportError> {
        let ring = ring(plain_builder().setup_submit_all(), MAX_IN_FLIGHT as u32)?;
        ring.submitter()
            .register_files(&[socket.as_raw_fd()])
            .map_err(TransportError::io("register the socket with io_uring"))?;
        let buffer = SendBuffer::new(config.buffer_len());
        let mut registered = None;
        if config.registered {
            match register(&ring, buffer.memory()) {
                Ok(()) => registered = Some(0),
                Err(error) => tracing::info!(
                    %error, bytes = buffer.capacity(),
                    "the send buffer cannot be registered: see the limit of locked memory (ulimit -l)"
                ),
            }
        }
        Ok(Self {
            ring,
            socket,
            buffer: ManuallyDrop::new(buffer),
            in_flight: VecDeque::with_capacity(MAX_IN_FLIGHT),
            oldest: 0,
            zero_copy_from: config.zero_copy_from,
            registered,
            broken: false,
        })
    }

    /// Hands all that was committed to the ring. Whether there was anything.
    fn queue(&mut self) -> Result<bool, TransportError> {
        let mut any = false;
        while self.in_flight.len() < MAX_IN_FLIGHT {
            let Some((start, len)) = self.buffer.submit() else { break };
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            // Only one may wait for the socket at a time, or they could overtake each other. Those that
            // wait are plain: a drained zero-copy send would wait for its own notification.
            let waits = self.in_flight.iter().any(|sending| !sending.sent);
            let entry = if waits {
                let entry = opcode::Send::new(types::Fixed(0), start, len as u32).flags(flags).build();
                entry.flags(squeue::Flags::IO_DRAIN)
            } else if len >= self.zero_copy_from {
                opcode::SendZc::new(types::Fixed(0), start, len as u32)
                    .flags(flags)
                    .zc_flags(REPORT_USAGE)
                    .buf_index(self.registered)
                    .build()
            } else {
                opcode::Send::new(types::Fixed(0), start, len as u32).flags(flags).build()
            };
            let name = self.oldest + self.in_flight.len() as u64;
            push(&mut self.ring, &entry.user_data(name))?;
            self.in_flight.push_back(Sending { len, sent: false, free: false });
            any = true;
        }
        Ok(any)
    }

    /// Takes in completions, without a system call.
    fn reap(&mut self) -> Result<(), TransportError> {
        for entry in self.ring.completion() {
            let Some(sending) = self.in_flight.get_mut((entry.user_data() - self.oldest) as usize) else {
                continue;
            };
            if cqueue::notif(entry.flags()) {
                sending.free = true;
                if entry.result() as u32 & COPIED != 0 {
                    self.zero_copy_from = usize::MAX;
                }
                continue;
            }
            sending.free = !cqueue::more(entry.flags());
            match usize::try_from(entry.result()) {
                Ok(len) if len == sending.len => sending.sent = true,
                Ok(_) => return Err(TransportError::io(SENDING)(io::ErrorKind::WriteZero.into())),
                Err(_) => {
                    return Err(TransportError::io(SENDING)(io::Error::from_raw_os_error(-entry.result())));
                }
            }
        }
        while let Some(sending) = self.in_flight.pop_front_if(|sending| sending.sent && sending.free) {
            self.oldest += 1;
            self.buffer.release(sending.len);
        }
        Ok(())
    }

    fn try_flush(&mut self) -> Result<(), TransportError> {
        if self.broken {
            return Err(TransportError::io(SENDING)(io::ErrorKind::BrokenPipe.into()));
        }
        if !self.in_flight.is_empty() {
            self.reap()?;
        }
        if self.queue()? {
            self.ring.submit().map_err(TransportError::io(SENDING))?;
            self.reap()?;
        }
        Ok(())
    }

    fn wait_sent(&mut self, deadline: Instant) -> Result<bool, TransportError> {
        loop {
            self.flush()?;
            if self.buffer.queued() == 0 {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = types::Timespec::from(left.min(Duration::from_millis(20)));
            let args = types::SubmitArgs::new().timespec(&left);
            match self.ring.submitter().submit_with_args(1, &args) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR)) => {
                    return Err(TransportError::io(SENDING)(error));
                }
                _ => {}
            }
        }
    }

    /// Bytes in the socket that the peer's kernel has not acknowledged.
    fn unacknowledged(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: SIOCOUTQ (which TIOCOUTQ equals) writes one int.
        unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        usize::try_from(bytes).unwrap_or(0)
    }
}

impl SendHalf for TcpSend {
    fn room(&mut self) -> &mut [u8] {
        self.buffer.room()
    }

    fn commit(&mut self, len: usize) {
        self.buffer.commit(len);
    }

    fn queued(&self) -> usize {
        self.buffer.queued()
    }

    fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        self.try_flush().inspect_err(|_| self.broken = true)
    }

    /// While a send waits for the socket, the bytes behind it collect: they go out in one piece later, and
    /// need no worker of the kernel to keep the order.
    fn offer(&mut self) -> Result<(), TransportError> {
        if !self.broken && !self.in_flight.is_empty() {
            self.reap().inspect_err(|_| self.broken = true)?;
            if self.in_flight.iter().any(|sending| !sending.sent) {
                return Ok(());
            }
        }
        self.flush()
    }

    /// Waits, beyond what [`SendHalf`] asks for, until the peer's kernel has acknowledged every byte.
    fn finish(&mut self, patience: Duration) -> Result<(), TransportError> {
        let deadline = Instant::now() + patience;
        if !self.wait_sent(deadline)? {
            return Err(TransportError::Unsent { unsent: self.buffer.queued(), patience });
        }
        // SAFETY: plain system call on an open socket. It fails only if the connection is gone already,
        // which the count of unacknowledged bytes tells.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_WR) };
        while self.unacknowledged() > 0 {
            if Instant::now() >= deadline {
                return Err(TransportError::Unsent { unsent: self.unacknowledged(), patience });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

impl Drop for TcpSend {
    fn drop(&mut self) {
        let in_flight = self.in_flight.iter().filter(|sending| !sending.free).count();
        if in_flight > 0 {
            // Or the sends behind a cancelled one would go on in the middle of the stream.
            // SAFETY: plain system call on an open socket.
            unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_WR) };
        }
        if cancel_all(&mut self.ring, in_flight, |entry| !cqueue::more(entry.flags())) {
            // SAFETY: dropped once, here, and the kernel does not use it any more.
            unsafe { ManuallyDrop::drop(&mut self.buffer) };
        }
    }
}
