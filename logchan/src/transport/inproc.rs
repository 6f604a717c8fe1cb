//! Within one process, for tests: with delay, cut and corruption on demand.
//!
//! One difference to a real network: bytes that a held link does not take are taken by the first flush
//! after the hold, not by themselves.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::buffer::SendBuffer;
use super::{Duplex, ReceiveHalf, SendHalf, TransportError, Wake, Waker};
use crate::frame::MAX_FRAME;

/// Bytes a receiving half holds at most before it leaves the rest in the link.
const RECEIVE_WINDOW: usize = 256 << 10;
/// Bytes of replies that may wait.
const REPLY_ROOM: usize = 64 << 10;

/// The primary's two halves, the backup's end, and the control over what happens between them.
#[derive(Debug)]
pub struct Link {
    /// The primary's sending half.
    pub send: InprocSend,
    /// The primary's receiving half.
    pub receive: InprocReceive,
    /// The backup's end.
    pub backup: InprocDuplex,
    /// What goes wrong on the way to the backup.
    pub log_faults: Faults,
    /// What goes wrong on the way back.
    pub ack_faults: Faults,
}

/// A link whose primary buffers up to `capacity` bytes (at least two frames of the largest size).
///
/// # Errors
/// The process has no descriptors left.
pub fn link(capacity: usize) -> Result<Link, TransportError> {
    let (log, acks) = (Arc::new(Pipe::new()?), Arc::new(Pipe::new()?));
    let sender =
        |pipe: &Arc<Pipe>, room| InprocSend { pipe: Arc::clone(pipe), buffer: SendBuffer::new(room) };
    Ok(Link {
        send: sender(&log, capacity.max(2 * MAX_FRAME)),
        receive: InprocReceive::new(&acks)?,
        backup: InprocDuplex { receive: InprocReceive::new(&log)?, reply: sender(&acks, REPLY_ROOM) },
        log_faults: Faults(log),
        ack_faults: Faults(acks),
    })
}

#[derive(Debug)]
struct Pipe {
    state: Mutex<State>,
    arrival: Waker,
}

#[derive(Debug)]
struct State {
    bytes: VecDeque<u8>,
    /// When so many further bytes arrive.
    arrivals: VecDeque<(Instant, usize)>,
    delay: Duration,
    held: bool,
    cut: bool,
    closed: bool,
    /// Flip these bits of the byte sent after so many others.
    corrupt: Option<(usize, u8)>,
}

impl Pipe {
    fn new() -> Result<Self, TransportError> {
        Ok(Self {
            state: Mutex::new(State {
                bytes: VecDeque::with_capacity(RECEIVE_WINDOW),
                arrivals: VecDeque::with_capacity(1024),
                delay: Duration::ZERO,
                held: false,
                cut: false,
                closed: false,
                corrupt: None,
            }),
            arrival: Waker::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.arrival.wake();
    }
}

impl State {
    fn put(&mut self, mut bytes: &[u8]) {
        let at = Instant::now() + self.delay;
        let total = bytes.len();
        while let Some((first, rest)) = bytes.split_first() {
            match self.corrupt {
                Some((0, mask)) => {
                    self.bytes.push_back(first ^ mask);
                    self.corrupt = None;
                    bytes = rest;
                }
                limit => {
                    let clean = limit.map_or(bytes.len(), |(after, _)| after.min(bytes.len()));
                    self.bytes.extend(&bytes[..clean]);
                    self.corrupt = limit.map(|(after, mask)| (after - clean, mask));
                    bytes = &bytes[clean..];
                }
            }
        }
        self.arrivals.push_back((at, total));
    }
}

/// What goes wrong in one direction.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Pipe>);

impl Faults {
    /// Bytes sent from now on arrive so much later.
    pub fn delay(&self, delay: Duration) {
        self.0.lock().delay = delay;
    }

    /// While held, the network takes no bytes: they stay in the sender's buffer.
    pub fn hold(&self, held: bool) {
        self.0.lock().held = held;
    }

    /// From now on bytes vanish without anybody being told, as in a partition.
    pub fn cut(&self) {
        let mut state = self.0.lock();
        state.cut = true;
        state.bytes.clear();
        state.arrivals.clear();
    }

    /// The receiver sees the stream end, as after the sender's death.
    pub fn close(&self) {
        self.0.close();
    }

    /// Flips the bits of `mask` in the byte that is sent after `after` others from now on.
    pub fn corrupt(&self, after: usize, mask: u8) {
        self.0.lock().corrupt = Some((after, mask));
    }
}

/// A sending half.
#[derive(Debug)]
pub struct InprocSend {
    pipe: Arc<Pipe>,
    buffer: SendBuffer,
}

impl SendHalf for InprocSend {
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
        let mut state = self.pipe.lock();
        if state.closed {
            return Err(TransportError::Closed);
        }
        if state.held {
            return Ok(());
        }
        let (first, second) = self.buffer.unsubmitted();
        let len = first.len() + second.len();
        if len > 0 && !state.cut {
            state.put(first);
            state.put(second);
        }
        drop(state);
        self.buffer.done(len);
        if len > 0 {
            self.pipe.arrival.wake();
        }
        Ok(())
    }

    fn finish(&mut self, patience: Duration) -> Result<(), TransportError> {
        let deadline = Instant::now() + patience;
        self.flush()?;
        while self.queued() > 0 {
            if Instant::now() >= deadline {
                return Err(TransportError::Unsent { unsent: self.queued(), patience });
            }
            std::thread::sleep(Duration::from_millis(1));
            self.flush()?;
        }
        self.pipe.close();
        Ok(())
    }
}

impl Drop for InprocSend {
    fn drop(&mut self) {
        self.pipe.close();
    }
}

/// A receiving half.
#[derive(Debug)]
pub struct InprocReceive {
    pipe: Arc<Pipe>,
    waker: Waker,
    buffer: Vec<u8>,
    consumed: usize,
}

impl InprocReceive {
    fn new(pipe: &Arc<Pipe>) -> Result<Self, TransportError> {
        Ok(Self {
            pipe: Arc::clone(pipe),
            waker: Waker::new()?,
            buffer: Vec::with_capacity(2 * RECEIVE_WINDOW),
            consumed: 0,
        })
    }

    /// Moves what has arrived into the buffer. Whether there was something, whether the stream ended,
    /// and how long until the next bytes arrive.
    fn take(&mut self) -> (bool, bool, Option<Duration>) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        let now = Instant::now();
        let mut state = self.pipe.lock();
        let mut any = false;
        while self.buffer.len() < RECEIVE_WINDOW {
            match state.arrivals.pop_front() {
                None => break,
                Some((at, len)) if at > now => {
                    state.arrivals.push_front((at, len));
                    break;
                }
                Some((at, len)) => {
                    let take = len.min(RECEIVE_WINDOW - self.buffer.len());
                    self.buffer.extend(state.bytes.drain(..take));
                    any |= take > 0;
                    if take < len {
                        state.arrivals.push_front((at, len - take));
                    }
                }
            }
        }
        let room = self.buffer.len() < RECEIVE_WINDOW;
        let next = state.arrivals.front().filter(|_| room).map(|(at, _)| at.saturating_duration_since(now));
        (any, state.closed && state.arrivals.is_empty(), next)
    }
}

impl ReceiveHalf for InprocReceive {
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        let (data, closed, next) = self.take();
        if data {
            return Ok(Wake { data, woken: self.waker.drain(), watched: false });
        }
        if closed {
            return Err(TransportError::Closed);
        }
        let patience = match (timeout, next) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut polled = [&self.pipe.arrival, &self.waker].map(|waker| libc::pollfd {
            fd: waker.fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        let patience =
            patience.map(|t| libc::timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let patience = patience.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: two valid pollfds and a timespec or none.
        if unsafe { libc::ppoll(polled.as_mut_ptr(), 2, patience, std::ptr::null()) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(TransportError::io("wait for the link")(error));
            }
        }
        self.pipe.arrival.drain();
        let woken = self.waker.drain();
        let (data, closed, _) = self.take();
        if closed && !data && !woken {
            return Err(TransportError::Closed);
        }
        Ok(Wake { data, woken, watched: false })
    }

    fn data(&self) -> &[u8] {
        &self.buffer[self.consumed..]
    }

    fn consume(&mut self, len: usize) {
        assert!(len <= self.data().len(), "more consumed than received");
        self.consumed += len;
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// The backup's end.
#[derive(Debug)]
pub struct InprocDuplex {
    receive: InprocReceive,
    reply: InprocSend,
}

impl ReceiveHalf for InprocDuplex {
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        self.push()?;
        self.receive.wait(timeout)
    }

    fn data(&self) -> &[u8] {
        self.receive.data()
    }

    fn consume(&mut self, len: usize) {
        self.receive.consume(len);
    }

    fn waker(&self) -> Waker {
        self.receive.waker()
    }
}

impl Duplex for InprocDuplex {
    fn reply(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        Ok(super::queue_whole(&mut self.reply, bytes))
    }

    fn push(&mut self) -> Result<(), TransportError> {
        // A peer that reads no acks any more may still have sent log: that is worth reading first.
        match self.reply.flush() {
            Err(TransportError::Closed) => Ok(()),
            other => other,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn send(half: &mut impl SendHalf, bytes: &[u8]) {
        half.room()[..bytes.len()].copy_from_slice(bytes);
        half.commit(bytes.len());
        half.flush().unwrap();
    }

    fn receive(half: &mut impl ReceiveHalf, len: usize) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while half.data().len() < len && Instant::now() < deadline {
            half.wait(Some(Duration::from_millis(50))).unwrap();
        }
        let bytes = half.data()[..len].to_vec();
        half.consume(len);
        bytes
    }

    #[test]
    fn bytes_cross_both_ways() {
        let mut link = link(0).unwrap();
        send(&mut link.send, b"log");
        assert_eq!(receive(&mut link.backup, 3), b"log");
        assert!(link.backup.reply(b"ack").unwrap());
        link.backup.push().unwrap();
        assert_eq!(receive(&mut link.receive, 3), b"ack");
    }

    #[test]
    fn faults_do_what_they_say() {
        let mut link = link(0).unwrap();
        link.log_faults.corrupt(2, 0xff);
        send(&mut link.send, &[1, 2, 3, 4]);
        assert_eq!(receive(&mut link.backup, 4), [1, 2, 3 ^ 0xff, 4]);

        link.log_faults.delay(Duration::from_millis(30));
        let start = Instant::now();
        send(&mut link.send, &[5]);
        assert_eq!(receive(&mut link.backup, 1), [5]);
        assert!(start.elapsed() >= Duration::from_millis(30));
        link.log_faults.delay(Duration::ZERO);

        link.log_faults.hold(true);
        send(&mut link.send, &[6]);
        assert_eq!(link.send.queued(), 1);
        assert!(matches!(
            link.send.finish(Duration::from_millis(5)),
            Err(TransportError::Unsent { unsent: 1, .. })
        ));
        link.log_faults.hold(false);
        link.send.finish(Duration::from_millis(5)).unwrap();
        assert_eq!(receive(&mut link.backup, 1), [6]);
        assert!(matches!(link.backup.wait(None), Err(TransportError::Closed)));
    }

    #[test]
    fn a_cut_link_is_silent_and_a_waker_ends_the_wait() {
        let mut link = link(0).unwrap();
        link.log_faults.cut();
        send(&mut link.send, &[1]);
        assert_eq!(link.backup.wait(Some(Duration::from_millis(10))).unwrap(), Wake::default());
        let waker = link.backup.waker();
        std::thread::spawn(move || waker.wake());
        assert!(link.backup.wait(None).unwrap().woken);
    }
}
