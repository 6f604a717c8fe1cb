//! The two halves, and the backup's end that replies.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::conn::{Cause, Connection};
use super::flow::{Inbound, SLOTS};
use super::sender::Sender;
use super::verbs::{BATCH, Done, Side};
use super::{Completion, RdmaConfig};
use crate::transport::buffer::{Memory, SendBuffer};
use crate::transport::{Duplex, Glance, ReceiveHalf, SendHalf, TransportError, Wake, Waker};

/// Bytes taken out of the ring that wait to be consumed.
const WINDOW: usize = 256 << 10;
/// Looks at the queue between two looks at the descriptors and the clock, while polling.
const TURNS: u32 = 64;
/// Once a connection is over, its receive requests come back within this, each with a message or without.
const DRAIN: Duration = Duration::from_millis(500);
/// Between two looks at them.
const NAP: Duration = Duration::from_millis(1);
/// Waits that ended at once with data, between two looks at the descriptors.
const STREAK: u32 = 32;

/// The sending half of an RDMA connection: one ring of the doorbell per flush, no waiting.
pub struct RdmaSend(Sender);

impl RdmaSend {
    pub(super) fn new(conn: Arc<Connection>, buffer: SendBuffer) -> Self {
        Self(Sender::new(conn, buffer))
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.0.conn
    }
}

impl std::fmt::Debug for RdmaSend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaSend").field("queued", &self.0.queued()).finish_non_exhaustive()
    }
}

impl SendHalf for RdmaSend {
    fn room(&mut self) -> &mut [u8] {
        self.0.settle();
        self.0.buffer.room()
    }

    fn commit(&mut self, len: usize) {
        self.0.buffer.commit(len);
    }

    fn queued(&self) -> usize {
        self.0.queued()
    }

    fn capacity(&self) -> usize {
        self.0.buffer.capacity()
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        Ok(self.0.flush()?)
    }

    /// Waits, beyond what [`SendHalf`] asks for, until every byte is in the peer's memory.
    fn finish(&mut self, patience: Duration) -> Result<(), TransportError> {
        let deadline = Instant::now() + patience;
        loop {
            self.0.flush()?;
            if self.0.conn.end()? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(TransportError::Unsent { unsent: self.0.queued(), patience });
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Receives: out of the registered ring into a window of its own, so that what was checked is what is
/// used, whatever the peer writes afterwards.
struct Engine {
    conn: Arc<Connection>,
    inbound: Inbound,
    window: Memory,
    start: usize,
    end: usize,
    waker: Waker,
    watched: Option<OwnedFd>,
    completion: Completion,
    /// The next completion of the peer's writes, or of its own, will make the descriptor readable.
    armed: [bool; 2],
    /// Own writes that were placed are news, and how many bytes of them were told.
    placed: Option<u64>,
    placed_more: bool,
    /// Receive requests that the device has.
    requests: usize,
    /// Nothing more can come out of the queue: the cause may be told.
    drained: bool,
    drain_until: Option<Instant>,
    /// What no wait has told yet.
    news: Wake,
    streak: u32,
    cause: Option<Cause>,
}

impl Engine {
    fn new(conn: Arc<Connection>, config: &RdmaConfig) -> Result<Self, TransportError> {
        Ok(Self {
            inbound: Inbound::new(conn.ring.len() as u64),
            conn,
            window: Memory::new(WINDOW),
            start: 0,
            end: 0,
            waker: Waker::new()?,
            watched: None,
            completion: config.completion,
            armed: [false; 2],
            placed: config.placed.then_some(0),
            placed_more: false,
            requests: SLOTS as usize,
            drained: false,
            drain_until: None,
            news: Wake::default(),
            streak: 0,
            cause: None,
        })
    }

    /// Takes in what came, without a system call if there is nothing to answer.
    fn take(&mut self) {
        if !self.drained {
            let taken = self.take_messages();
            // A request that came back empty: all with messages came before it.
            self.drained = taken.is_err() || self.requests == 0 || self.waited_enough();
            if let Err(cause) = taken {
                self.end(cause);
            }
        }
        self.copy_out();
        if self.cause.is_none() {
            if self.placed.is_some()
                && let Err(cause) = self.conn.look_at_writes()
            {
                self.end(cause);
            }
            self.note_placed();
        }
        if self.cause.is_none() {
            let driven = match self.inbound.due() {
                Some(credit) => self.conn.grant(credit),
                None if self.conn.is_waiting() => self.conn.drive(),
                None => Ok(()),
            };
            // Bytes that came before are still to be taken in by the next turn.
            if let Err(cause) = driven {
                self.end(cause);
            }
        }
    }

    /// The connection is over. The peer can place nothing more, and what it has is still to be taken in.
    fn end(&mut self, cause: Cause) {
        if self.cause.is_none() {
            self.cause = Some(self.conn.fail(cause));
            self.drain_until = Instant::now().checked_add(DRAIN);
        }
    }

    fn waited_enough(&self) -> bool {
        self.drain_until.is_some_and(|until| Instant::now() >= until)
    }

    fn note_placed(&mut self) {
        if let Some(told) = &mut self.placed {
            let placed = self.conn.placed();
            self.placed_more |= placed > *told;
            *told = placed;
        }
    }

    fn take_messages(&mut self) -> Result<(), Cause> {
        let mut done = [Done { status: 0, immediate: None }; BATCH];
        loop {
            let looking = |error: std::io::Error| {
                Cause::Call("look for RDMA completions", error.raw_os_error().unwrap_or(libc::EIO))
            };
            let count = self.conn.queues.poll(Side::Receive, &mut done).map_err(looking)?;
            if count == 0 {
                return Ok(());
            }
            // What the peer wrote before its message is visible from here on.
            fence(Ordering::Acquire);
            let good = done[..count].iter().take_while(|done| done.status == 0).count();
            self.requests -= good;
            if self.cause.is_none() {
                self.conn.queues.post_receives(good).map_err(looking)?;
                self.requests += good;
            }
            for done in &done[..count] {
                if done.status != 0 {
                    return Err(self.conn.reason(done.status));
                }
                let immediate = done.immediate.ok_or(Cause::Lie("it sends what is no write to the ring"))?;
                self.inbound.message(immediate)?;
            }
        }
    }

    fn copy_out(&mut self) {
        loop {
            let (offset, len) = self.inbound.readable();
            if len == 0 {
                return;
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.end > WINDOW / 2 && self.start > 0 {
                let (start, end) = (self.start, self.end);
                self.window.slice_mut(0, end).copy_within(start.., 0);
                (self.start, self.end) = (0, end - start);
            }
            let step = len.min(WINDOW - self.end);
            if step == 0 {
                return;
            }
            // SAFETY: within the ring and within the window, which are different memory. A peer that
            // keeps to the protocol writes nothing there now; one that does not spoils its own bytes.
            unsafe {
                let from = self.conn.ring.as_ptr().add(offset);
                std::ptr::copy_nonoverlapping(from, self.window.at(self.end), step);
            }
            self.end += step;
            self.inbound.take(step);
            self.news.data = true;
        }
    }

    /// What ends a wait, if it is there.
    fn outcome(&mut self) -> Option<Result<Wake, TransportError>> {
        let wake = std::mem::take(&mut self.news);
        if std::mem::take(&mut self.placed_more) || wake != Wake::default() {
            return Some(Ok(wake));
        }
        // What came in before the end is handed out first.
        if self.inbound.readable().1 > 0 || self.is_draining() {
            return None;
        }
        let ended = self.inbound.ended().then_some(Cause::Closed);
        self.cause.or(ended).map(|cause| Err(cause.into()))
    }

    /// The connection is over, and messages that came before may still be in the queue.
    const fn is_draining(&self) -> bool {
        self.cause.is_some() && !self.drained
    }

    /// Makes the next completions wake this thread up. Whether that is news: then one may have come since
    /// the last look, and would not.
    fn arm(&mut self) -> Result<bool, TransportError> {
        let wanted = [self.placed.is_some(), true];
        let mut news = false;
        for side in [Side::Send, Side::Receive] {
            let armed = &mut self.armed[side as usize];
            if wanted[side as usize] && !*armed && self.cause.is_none() {
                self.conn.queues.arm(side).map_err(TransportError::io("ask for RDMA notifications"))?;
                (*armed, news) = (true, true);
            }
        }
        Ok(news)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        let now = Instant::now();
        let deadline = timeout.and_then(|timeout| now.checked_add(timeout));
        let spin_until = match self.completion {
            Completion::Events => Some(now),
            Completion::Adaptive(spin) => now.checked_add(spin),
            Completion::Busy => None,
        };
        let mut turns = 0_u32;
        loop {
            self.take();
            if self.news.data {
                self.streak += 1;
                if self.streak >= STREAK {
                    self.look(Some(Duration::ZERO))?;
                }
            }
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            turns += 1;
            if !turns.is_multiple_of(TURNS) && self.completion != Completion::Events {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
            if spin_until.is_none_or(|end| now < end) {
                self.look(Some(Duration::ZERO))?;
                std::thread::yield_now();
            } else if self.is_draining() {
                self.look(Some(left.map_or(NAP, |left| left.min(NAP))))?;
            } else if self.arm()? {
                continue;
            } else {
                self.look(left)?;
                self.take();
            }
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            if left.is_some_and(|left| left.is_zero()) || deadline.is_some_and(|end| Instant::now() >= end) {
                return Ok(Wake::default());
            }
        }
    }

    /// Waits for the descriptors: completions, the connection, the waker, the caller's.
    fn look(&mut self, timeout: Option<Duration>) -> Result<(), TransportError> {
        self.streak = 0;
        let watched = self.watched.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let fds = [self.waker.fd().as_raw_fd(), self.conn.queues.fd(), self.conn.events_fd(), watched];
        let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        let spec = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: valid entries, a valid time or none, no signal mask.
        let ready = unsafe { libc::ppoll(polls.as_mut_ptr(), polls.len() as u64, spec, std::ptr::null()) };
        if ready < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                return Ok(());
            }
            return Err(TransportError::io("wait for the peer")(error));
        }
        let [waker, completions, events, watched] = polls.map(|poll| poll.revents != 0);
        if waker {
            self.news.woken |= self.waker.drain();
        }
        self.news.watched |= watched;
        // One for each look: the next look finds a second one, and there is hardly ever a second one.
        if completions && let Some(side) = self.conn.queues.notification() {
            self.armed[side as usize] = false;
        }
        if events
            && self.cause.is_none()
            && let Some(cause) = self.conn.happened()
        {
            self.end(cause);
        }
        Ok(())
    }
}

/// The receiving half of an RDMA connection.
pub struct RdmaReceive(Engine);

/// The backup's end of an RDMA connection: receives and replies.
pub struct RdmaDuplex {
    engine: Engine,
    replies: Sender,
}

impl RdmaReceive {
    pub(super) fn new(conn: Arc<Connection>, config: &RdmaConfig) -> Result<Self, TransportError> {
        Engine::new(conn, config).map(Self)
    }
}

impl RdmaDuplex {
    pub(super) fn new(
        conn: Arc<Connection>,
        buffer: SendBuffer,
        config: &RdmaConfig,
    ) -> Result<Self, TransportError> {
        Ok(Self { engine: Engine::new(Arc::clone(&conn), config)?, replies: Sender::new(conn, buffer) })
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.engine.conn
    }
}

macro_rules! receive_half {
    ($type:ident, $engine:tt, $before:expr) => {
        impl ReceiveHalf for $type {
            fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
                let before: fn(&mut Self) = $before;
                before(self);
                self.$engine.wait(timeout)
            }

            fn data(&self) -> &[u8] {
                self.$engine.window.slice(self.$engine.start, self.$engine.end)
            }

            fn consume(&mut self, len: usize) {
                assert!(len <= self.data().len(), "more consumed than received");
                self.$engine.start += len;
            }

            fn waker(&self) -> Waker {
                self.$engine.waker.clone()
            }

            fn placed(&self) -> Option<u64> {
                self.$engine.placed
            }

            fn glance(&self) -> Option<Glance> {
                let engine = &self.$engine;
                engine.placed.map(|_| Glance::Placed(Arc::<Connection>::clone(&engine.conn)))
            }

            fn watch(&mut self, fd: OwnedFd) -> Result<(), TransportError> {
                self.$engine.watched = Some(fd);
                Ok(())
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($type)).field("waiting", &self.data().len()).finish_non_exhaustive()
            }
        }
    };
}

receive_half!(RdmaReceive, 0, |_| ());
// A broken connection shows itself in the wait, behind the bytes that came before.
receive_half!(RdmaDuplex, engine, |this| {
    if this.replies.buffer.queued() > 0 {
        let _ = this.replies.flush();
    }
});

impl Duplex for RdmaDuplex {
    fn shut(&mut self) -> bool {
        self.engine.end(Cause::Closed);
        true
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.replies.settle();
        let Some(room) = self.replies.buffer.room().get_mut(..bytes.len()) else { return Ok(false) };
        room.copy_from_slice(bytes);
        self.replies.buffer.commit(bytes.len());
        Ok(true)
    }

    fn push(&mut self) -> Result<(), TransportError> {
        Ok(self.replies.flush()?)
    }
}
