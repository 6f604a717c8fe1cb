//! The receiving half, and the backup's end that also replies.

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::provided::Provided;
use super::{Receive, TcpConfig, cancel_all, plain_builder, push, register, ring};
use crate::transport::buffer::{Memory, SendBuffer};
use crate::transport::{Duplex, Glance, Peek, ReceiveHalf, TransportError, Wake, Waker};

/// Bytes received at most before they are consumed.
pub(super) const WINDOW: usize = 256 << 10;
/// Where the eventfd's count is read to, behind the window.
const WAKE_WORD: usize = WINDOW;
/// Bytes of replies that may wait for the network.
const REPLY_ROOM: usize = 64 << 10;

const SOCKET: types::Fixed = types::Fixed(0);
const EVENTFD: types::Fixed = types::Fixed(1);

const RECEIVE: u64 = 1;
const WOKEN: u64 = 2;
const REPLY: u64 = 3;
const WATCHED: u64 = 4;

const RECEIVING: &str = "receive from the peer";
const REPLYING: &str = "reply to the peer";

/// How the replies handed to the kernel last are getting on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// None is with the kernel.
    Idle,
    /// So many bytes were queued, to be sent on the spot or not at all: complete after the system call
    /// unless a completion says otherwise.
    Inline(usize),
    /// The socket was full; the kernel sends so many bytes when it can and then says so.
    Waiting(usize),
}

/// How bytes are taken in.
#[derive(Debug)]
enum Intake {
    Plain,
    Registered,
    /// The kernel fills the window from the received bytes' end to `.1` by itself.
    Multishot(Provided, usize),
}

impl Intake {
    /// What is wanted, or what this kernel can do.
    fn new(wanted: Receive, ring: &IoUring, window: &Memory) -> Self {
        let made = match wanted {
            Receive::Plain => Ok(Self::Plain),
            Receive::Registered => register(ring, window).map(|()| Self::Registered),
            Receive::Multishot => Provided::new(ring).map(|provided| Self::Multishot(provided, 0)),
        };
        made.unwrap_or_else(|error| {
            tracing::info!(?wanted, %error, "this kernel cannot receive so: one plain operation for each wait");
            Self::Plain
        })
    }
}

/// Receives, and replies, over one io_uring.
struct Engine {
    ring: IoUring,
    socket: Arc<OwnedFd>,
    waker: Waker,
    /// The window and the wake word. Leaked rather than freed if the kernel may still write to it.
    memory: ManuallyDrop<Memory>,
    replies: ManuallyDrop<SendBuffer>,
    /// Bytes received and not consumed: `start..end` of the window.
    start: usize,
    end: usize,
    receiving: bool,
    intake: Intake,
    listening: bool,
    /// A descriptor of the caller's, and whether it is being polled.
    watched: Option<OwnedFd>,
    watching: bool,
    reply: Reply,
    /// Rings with a single issuer belong to the thread that enables them: the first that waits.
    enabled: bool,
    /// What completions brought that no wait has told yet.
    news: Wake,
    fault: Option<TransportError>,
    spin: Duration,
}

impl Engine {
    fn new(socket: Arc<OwnedFd>, config: &TcpConfig, reply_room: usize) -> Result<Self, TransportError> {
        let waker = Waker::new()?;
        let mut builder = plain_builder();
        builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_r_disabled();
        let (ring, enabled) = match ring(&mut builder, 8) {
            // Kernels before 6.1 do not know these flags and need them not.
            Err(TransportError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                (ring(&mut plain_builder(), 8)?, true)
            }
            other => (other?, false),
        };
        ring.submitter()
            .register_files(&[socket.as_raw_fd(), waker.fd().as_raw_fd()])
            .map_err(TransportError::io("register the socket with io_uring"))?;
        let memory = Memory::new(WINDOW + 4096);
        let intake = Intake::new(config.receive, &ring, &memory);
        if !config.busy_poll.is_zero() {
            let micros = u32::try_from(config.busy_poll.as_micros()).unwrap_or(u32::MAX);
            let mut napi = types::Napi::new().set_busy_poll_timeout(micros).set_prefer_busy_poll(true);
            if let Err(error) = ring.submitter().register_napi(&mut napi) {
                tracing::info!(%error, "this kernel cannot poll the network card for io_uring (Linux 6.9 can)");
            }
        }
        Ok(Self {
            ring,
            socket,
            waker,
            memory: ManuallyDrop::new(memory),
            replies: ManuallyDrop::new(SendBuffer::new(reply_room)),
            start: 0,
            end: 0,
            receiving: false,
            intake,
            listening: false,
            watched: None,
            watching: false,
            reply: Reply::Idle,
            enabled,
            news: Wake::default(),
            fault: None,
            spin: config.spin,
        })
    }

    /// Queues every operation that should be under way and is not.
    fn arm(&mut self) -> Result<(), TransportError> {
        if !self.enabled {
            let enabling = self.ring.submitter().register_enable_rings();
            enabling.map_err(TransportError::io("enable io_uring"))?;
            self.enabled = true;
        }
        if self.reply == Reply::Idle
            && let Some((start, len)) = self.replies.submit()
        {
            // Complete or not at all, here and now; no completion if it went well, so that the wait
            // that is submitted together with it does not end for it.
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | libc::MSG_DONTWAIT;
            let entry = opcode::Send::new(SOCKET, start, len as u32).flags(flags).build();
            push(&mut self.ring, &entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(REPLY))?;
            self.reply = Reply::Inline(len);
        }
        if !self.listening {
            let entry = opcode::Read::new(EVENTFD, self.memory.at(WAKE_WORD), 8).build();
            push(&mut self.ring, &entry.user_data(WOKEN))?;
            self.listening = true;
        }
        if let Some(watched) = &self.watched
            && !self.watching
        {
            let entry = opcode::PollAdd::new(types::Fd(watched.as_raw_fd()), libc::POLLIN as u32).build();
            push(&mut self.ring, &entry.user_data(WATCHED))?;
            self.watching = true;
        }
        if !self.receiving && self.fault.is_none() {
            self.arm_receive()?;
        }
        Ok(())
    }

    fn arm_receive(&mut self) -> Result<(), TransportError> {
        // A multishot that ended early: the kernel still has the rest of the window.
        let has_rest = matches!(&self.intake, Intake::Multishot(_, end) if *end > self.end);
        if has_rest {
        } else if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end > WINDOW / 2 && self.start >= WINDOW / 4 {
            let (start, end) = (self.start, self.end);
            self.memory.slice_mut(0, end).copy_within(start.., 0);
            (self.start, self.end) = (0, end - start);
        }
        if self.end == WINDOW {
            return Ok(());
        }
        let (at, room) = (self.memory.at(self.end), WINDOW - self.end);
        let entry = match &mut self.intake {
            Intake::Plain => opcode::Recv::new(SOCKET, at, room as u32).build(),
            Intake::Registered => opcode::ReadFixed::new(SOCKET, at, room as u32, 0).build(),
            Intake::Multishot(provided, end) => {
                if !has_rest {
                    provided.offer(at, room);
                    *end = WINDOW;
                }
                Provided::receive(SOCKET)
            }
        };
        push(&mut self.ring, &entry.user_data(RECEIVE))?;
        self.receiving = true;
        Ok(())
    }

    /// Takes in completions, without a system call. Whether there is anything to tell.
    fn reap(&mut self) -> bool {
        let mut unsent = None;
        for entry in self.ring.completion() {
            let result = entry.result();
            match (entry.user_data(), result) {
                (RECEIVE, 1..) => {
                    self.end += result as usize;
                    self.receiving = cqueue::more(entry.flags());
                    self.news.data = true;
                }
                (RECEIVE, 0) => {
                    self.receiving = false;
                    self.fault.get_or_insert(TransportError::Closed);
                }
                (RECEIVE, _) => {
                    self.receiving = false;
                    // Without buffers: the window is used up.
                    if !matches!(-result, libc::EINTR | libc::EAGAIN | libc::ENOBUFS) {
                        let error = io::Error::from_raw_os_error(-result);
                        self.fault.get_or_insert(TransportError::io(RECEIVING)(error));
                    }
                }
                (WOKEN, _) => {
                    self.listening = false;
                    self.news.woken |= result == 8;
                }
                (WATCHED, _) => {
                    self.watching = false;
                    self.news.watched |= result > 0;
                }
                (REPLY, _) => unsent = Some(result),
                _ => {}
            }
        }
        self.settle_reply(unsent);
        self.news != Wake::default() || self.fault.is_some()
    }

    /// What became of the replies; to be called after the system call that submitted them.
    fn settle_reply(&mut self, completion: Option<i32>) {
        let (len, sent) = match (self.reply, completion) {
            // The kernel has not even looked at it yet.
            (Reply::Inline(_), None) if !self.ring.submission().is_empty() => return,
            (Reply::Inline(len), None) => {
                self.replies.release(len);
                self.reply = Reply::Idle;
                return;
            }
            (Reply::Inline(len), Some(sent)) if -sent == libc::EAGAIN => (len, 0),
            (Reply::Inline(len) | Reply::Waiting(len), Some(sent)) => match usize::try_from(sent) {
                Ok(sent) => (len, sent),
                Err(_) => {
                    self.reply = Reply::Idle;
                    let error = io::Error::from_raw_os_error(-sent);
                    self.fault.get_or_insert(TransportError::io(REPLYING)(error));
                    return;
                }
            },
            (Reply::Idle, _) | (Reply::Waiting(_), None) => return,
        };
        let start = self.replies.oldest();
        self.replies.release(sent);
        if sent == len {
            self.reply = Reply::Idle;
            return;
        }
        // SAFETY: `sent` bytes of the submitted run of `len` are gone, so the rest lies within it.
        let (rest, left) = (unsafe { start.add(sent) }, len - sent);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = opcode::Send::new(SOCKET, rest, left as u32).flags(flags).build().user_data(REPLY);
        self.reply = Reply::Waiting(left);
        if let Err(error) = push(&mut self.ring, &entry) {
            self.reply = Reply::Idle;
            self.fault.get_or_insert(error);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        if self.reap() {
            if self.replies.queued() > 0 {
                self.push()?;
            }
        } else if !self.spin(timeout)? {
            self.sleep(timeout)?;
        }
        // What came in before a fault is handed out first.
        let wake = std::mem::take(&mut self.news);
        match self.fault.take_if(|_| wake == Wake::default()) {
            Some(fault) => Err(fault),
            None => Ok(wake),
        }
    }

    fn push(&mut self) -> Result<(), TransportError> {
        // Replies sent on the spot before are settled by now, and make room for these.
        self.reap();
        self.arm()?;
        self.enter(0, None)
    }

    /// Looks for completions until there are some or the time to spin is over. `true`: there is no need to wait, for
    /// there are some, or the timeout is over too.
    fn spin(&mut self, timeout: Option<Duration>) -> Result<bool, TransportError> {
        if self.spin.is_zero() {
            return Ok(false);
        }
        let all = timeout.is_some_and(|timeout| timeout <= self.spin);
        let end = Instant::now().checked_add(timeout.map_or(self.spin, |timeout| timeout.min(self.spin)));
        loop {
            self.arm()?;
            self.enter(0, None)?;
            if self.reap() {
                return Ok(true);
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(all);
            }
        }
    }

    /// Waits for a completion. A multishot that finds the window used up ends with nothing to tell: it is started again,
    /// and the timeout with it.
    fn sleep(&mut self, timeout: Option<Duration>) -> Result<(), TransportError> {
        loop {
            self.arm()?;
            let receiving = self.receiving;
            self.enter(1, timeout)?;
            if self.reap() || receiving == self.receiving {
                return Ok(());
            }
        }
    }

    /// Submits what is queued, runs the kernel's deferred work, and waits for `want` completions.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), TransportError> {
        let queued = self.ring.submission().len() as u32;
        let timeout = timeout.map(types::Timespec::from);
        let mut args = types::SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
        // SAFETY: the argument matches EXT_ARG, and `push` answers for the queued operations.
        match unsafe { self.ring.submitter().enter(queued, want, flags, Some(&args)) } {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Err(TransportError::WrongThread),
            Err(error) => Err(TransportError::io("wait for the peer")(error)),
        }
    }

    fn consume(&mut self, len: usize) {
        assert!(len <= self.end - self.start, "more consumed than received");
        self.start += len;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let replying = matches!(self.reply, Reply::Waiting(_));
        let in_flight =
            [self.receiving, self.listening, self.watching, replying].map(usize::from).iter().sum();
        if cancel_all(&mut self.ring, in_flight, |entry| !cqueue::more(entry.flags())) {
            // SAFETY: dropped once, here, and the kernel does not use them any more.
            unsafe {
                ManuallyDrop::drop(&mut self.memory);
                ManuallyDrop::drop(&mut self.replies);
                if let Intake::Multishot(provided, _) = &mut self.intake {
                    provided.free();
                }
            }
        }
    }
}

/// The receiving half of a TCP connection. Once it has waited, it stays on that thread.
pub struct TcpReceive(Engine);

/// The backup's end of a TCP connection: receives, and replies with the same system call. Once it has
/// waited, it stays on that thread.
pub struct TcpDuplex(Engine);

impl TcpReceive {
    pub(super) fn new(socket: Arc<OwnedFd>, config: &TcpConfig) -> Result<Self, TransportError> {
        Engine::new(socket, config, 0).map(Self)
    }
}

impl TcpDuplex {
    pub(super) fn new(socket: Arc<OwnedFd>, config: &TcpConfig) -> Result<Self, TransportError> {
        Engine::new(socket, config, REPLY_ROOM).map(Self)
    }
}

macro_rules! receive_half {
    ($type:ident) => {
        impl ReceiveHalf for $type {
            fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
                self.0.wait(timeout)
            }

            fn data(&self) -> &[u8] {
                self.0.memory.slice(self.0.start, self.0.end)
            }

            fn consume(&mut self, len: usize) {
                self.0.consume(len);
            }

            fn waker(&self) -> Waker {
                self.0.waker.clone()
            }

            fn glance(&self) -> Option<Glance> {
                Some(Glance::Stream(Peek::new(Arc::clone(&self.0.socket))))
            }

            fn watch(&mut self, fd: OwnedFd) -> Result<(), TransportError> {
                self.0.watched = Some(fd);
                Ok(())
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let waiting = self.0.end - self.0.start;
                f.debug_struct(stringify!($type)).field("waiting", &waiting).finish_non_exhaustive()
            }
        }
    };
}

receive_half!(TcpReceive);
receive_half!(TcpDuplex);

impl Duplex for TcpDuplex {
    fn reply(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let Some(room) = self.0.replies.room().get_mut(..bytes.len()) else { return Ok(false) };
        room.copy_from_slice(bytes);
        self.0.replies.commit(bytes.len());
        Ok(true)
    }

    fn push(&mut self) -> Result<(), TransportError> {
        self.0.push()
    }
}
