//! A connection: what both halves share, and the way out.
//!
//! Whoever has bytes queues them as runs; [`Connection::drive`] posts of them what credits and queue
//! allow, from whichever thread gets there: the one that flushes, or the receiving one when a credit
//! or a completion makes room. So a flush never waits, and nothing stays behind.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::cm::Events;
use super::flow::{Credit, END, Lie, Outbound, SENDS};
use super::verbs::{BATCH, Done, Mapped, Queues, Side, Write, status_text};
use crate::transport::buffer::SendBuffer;
use crate::transport::{Placing, TransportError};
use rdma_sys::rdma_cm_event_type as kind;

/// Why a connection is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The peer ended it, or is gone and its kernel said so.
    Closed,
    /// A completion's status, of a write (or of a receive request).
    Status(Side, u32),
    /// A number from the peer that cannot be true.
    Lie(&'static str),
    /// The device was removed.
    Removed,
    /// A call failed with this errno.
    Call(&'static str, i32),
}

impl From<Cause> for TransportError {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Closed => Self::Closed,
            Cause::Status(side, status) => {
                let doing = if side == Side::Send { "write to the peer" } else { "receive from the peer" };
                Self::Rdma { doing, why: status_text(status) }
            }
            Cause::Lie(lie) => Self::Nonsense(lie),
            Cause::Removed => Self::Rdma { doing: "go on", why: "the device was removed".to_owned() },
            Cause::Call(doing, errno) => Self::io(doing)(std::io::Error::from_raw_os_error(errno)),
        }
    }
}

impl From<Lie> for Cause {
    fn from(lie: Lie) -> Self {
        Self::Lie(lie.0)
    }
}

fn call(doing: &'static str) -> impl FnOnce(std::io::Error) -> Cause {
    move |error| Cause::Call(doing, error.raw_os_error().unwrap_or(libc::EIO))
}

/// Where the peer's ring and credit word are.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) ring: u64,
    pub(super) ring_len: u64,
    pub(super) ring_key: u32,
    pub(super) word: u64,
    pub(super) word_key: u32,
}

/// Bytes on their way out that no write was posted for yet.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: *const u8,
    len: usize,
}

/// A write that was posted and has no completion yet.
#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    /// Bytes of the stream in it.
    len: usize,
    /// Bytes of the sender's buffer that its completion frees.
    frees: usize,
}

/// The way out, behind a lock.
struct Outgoing {
    flow: Outbound,
    runs: VecDeque<Run>,
    /// Writes under way, in order.
    under_way: VecDeque<UnderWay>,
    /// Of these, writes that free bytes.
    holding: usize,
    /// A credit for the peer, and whether to wake it up for that.
    credit: Option<Credit>,
    bell: bool,
    /// The stream is to end behind the last run; then: it has.
    ending: bool,
    ended: bool,
}

// SAFETY: runs point into the sender's buffer, which stays until the connection is gone.
unsafe impl Send for Outgoing {}

/// Both directions of a connection. The queue pair goes first when it is dropped, then the memory.
pub(super) struct Connection {
    pub(super) queues: Queues,
    events: Events,
    /// What the peer writes: its messages, and its credits.
    pub(super) ring: Mapped,
    word: Mapped,
    remote: Remote,
    local_key: u32,
    out: Mutex<Outgoing>,
    /// Bytes of the sender's buffer that are not needed any more, counted from the start.
    released: AtomicU64,
    /// Bytes of the stream whose writes have completed: the peer's adapter has them.
    placed: AtomicU64,
    /// Something waits for credits or for room in the queue.
    waiting: AtomicBool,
    cause: OnceLock<Cause>,
    /// Buffers of senders that are gone.
    retired: Mutex<Vec<SendBuffer>>,
}

impl Connection {
    pub(super) fn new(
        queues: Queues,
        events: Events,
        ring: Mapped,
        word: Mapped,
        remote: Remote,
        local_key: u32,
    ) -> Self {
        let out = Outgoing {
            flow: Outbound::new(remote.ring_len),
            runs: VecDeque::with_capacity(64),
            under_way: VecDeque::with_capacity(SENDS),
            holding: 0,
            credit: None,
            bell: false,
            ending: false,
            ended: false,
        };
        Self {
            queues,
            events,
            ring,
            word,
            remote,
            local_key,
            out: Mutex::new(out),
            released: AtomicU64::new(0),
            placed: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            cause: OnceLock::new(),
            retired: Mutex::new(Vec::new()),
        }
    }

    pub(super) const fn remote(&self) -> &Remote {
        &self.remote
    }

    fn out(&self) -> MutexGuard<'_, Outgoing> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection is no more, if so.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.cause.get().copied()
    }

    /// The connection is no more: the first cause counts, and the peer's keys are void from now on.
    pub(super) fn fail(&self, cause: Cause) -> Cause {
        if self.cause.set(cause).is_ok() {
            self.queues.id().disconnect();
        }
        self.cause().unwrap_or(cause)
    }

    /// Bytes of the sender's buffer that are not needed any more, counted from the start.
    pub(super) fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire)
    }

    /// Bytes of the stream that the peer's adapter has acknowledged, counted from the start.
    pub(super) fn placed(&self) -> u64 {
        self.placed.load(Ordering::Acquire)
    }

    /// Takes in completions of own writes.
    pub(super) fn look_at_writes(&self) -> Result<(), Cause> {
        if let Some(cause) = self.cause() {
            return Err(cause);
        }
        self.reap(&mut self.out()).map_err(|cause| self.fail(cause))
    }

    /// Keeps a sender's buffer until no write can read it any more.
    pub(super) fn retire(&self, buffer: SendBuffer) {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    /// Queues bytes of the sender's buffer to be sent.
    pub(super) fn queue(&self, start: *const u8, len: usize) {
        let mut out = self.out();
        if let Some(last) = out.runs.back_mut()
            && start == last.start.wrapping_add(last.len)
        {
            last.len += len;
        } else {
            out.runs.push_back(Run { start, len });
        }
    }

    /// Queues a credit for the peer, and sees that it hears of it.
    pub(super) fn grant(&self, credit: Credit) -> Result<(), Cause> {
        {
            let mut out = self.out();
            out.credit = Some(credit);
            out.bell = true;
        }
        self.drive()
    }

    /// Ends the stream behind everything queued. Whether that has happened, up to the last completion.
    pub(super) fn end(&self) -> Result<bool, Cause> {
        self.out().ending = true;
        self.drive()?;
        let out = self.out();
        Ok(out.ended && out.under_way.is_empty())
    }

    /// Whether [`Self::drive`] has something left to do, for whoever learns that there may be room.
    pub(super) fn is_waiting(&self) -> bool {
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::SeqCst)
    }

    /// Takes in completions and credits, and posts what may go.
    pub(super) fn drive(&self) -> Result<(), Cause> {
        if let Some(cause) = self.cause() {
            return Err(cause);
        }
        let mut out = self.out();
        self.post(&mut out).map_err(|cause| self.fail(cause))
    }

    fn post(&self, out: &mut Outgoing) -> Result<(), Cause> {
        loop {
            self.reap(out)?;
            self.take_credit(out)?;
            while self.post_batch(out)? {}
            let idle = out.runs.is_empty() && out.credit.is_none() && !out.bell && out.ending == out.ended;
            if idle {
                self.waiting.store(false, Ordering::SeqCst);
                return Ok(());
            }
            // Room that came before the announcement would be told to nobody: look once more after it.
            if self.waiting.swap(true, Ordering::SeqCst) {
                return Ok(());
            }
            fence(Ordering::SeqCst);
            self.queues.arm(Side::Send).map_err(call("ask for RDMA notifications"))?;
        }
    }

    /// Posts up to a batch of writes. Whether there was any.
    fn post_batch(&self, out: &mut Outgoing) -> Result<bool, Cause> {
        let nothing = Write {
            from: std::ptr::null(),
            len: 0,
            local_key: self.local_key,
            to: self.remote.ring,
            remote_key: self.remote.ring_key,
            immediate: None,
        };
        let mut writes = [nothing; BATCH];
        let mut count = 0;
        let room = (SENDS - out.under_way.len()).min(BATCH);
        let words;
        if room > 0
            && let Some(credit) = out.credit.take()
        {
            words = credit.words();
            writes[0] = Write {
                from: words.as_ptr().cast(),
                len: size_of_val(&words),
                to: self.remote.word,
                remote_key: self.remote.word_key,
                ..nothing
            };
            out.under_way.push_back(UnderWay::default());
            count = 1;
        }
        while count < room
            && let Some(run) = out.runs.front_mut()
            && let Some((offset, len)) = out.flow.next(run.len)
        {
            writes[count] = Write {
                from: run.start,
                len,
                to: self.remote.ring + offset,
                immediate: Some(len as u32),
                ..nothing
            };
            run.start = run.start.wrapping_add(len);
            run.len -= len;
            if run.len == 0 {
                out.runs.pop_front();
            }
            out.flow.sent(len);
            out.bell = false;
            count += 1;
            if len <= self.queues.inline() && out.holding == 0 {
                // The bytes are in the request itself, and nothing before them is needed any more.
                out.under_way.push_back(UnderWay { len, frees: 0 });
                self.released.fetch_add(len as u64, Ordering::Release);
            } else {
                out.under_way.push_back(UnderWay { len, frees: len });
                out.holding += 1;
            }
        }
        let ending = out.ending && !out.ended && out.runs.is_empty();
        if count < room && (out.bell || ending) && out.flow.may_ring() {
            writes[count] = Write { immediate: Some(if ending { END } else { 0 }), ..nothing };
            out.ended |= ending;
            out.bell = false;
            out.flow.sent(0);
            out.under_way.push_back(UnderWay::default());
            count += 1;
        }
        if count > 0 {
            self.queues.post(&writes[..count]).map_err(call("write to the peer"))?;
        }
        Ok(count > 0)
    }

    /// Takes in completions of own writes.
    fn reap(&self, out: &mut Outgoing) -> Result<(), Cause> {
        let mut done = [Done { status: 0, immediate: None }; BATCH];
        loop {
            let count = self.queues.poll(Side::Send, &mut done).map_err(call("look for RDMA completions"))?;
            for done in &done[..count] {
                if done.status != 0 {
                    return Err(Cause::Status(Side::Send, done.status));
                }
                let UnderWay { len, frees } = out.under_way.pop_front().unwrap_or_default();
                self.placed.fetch_add(len as u64, Ordering::Release);
                if frees > 0 {
                    out.holding -= 1;
                    self.released.fetch_add(frees as u64, Ordering::Release);
                }
            }
            if count < BATCH {
                return Ok(());
            }
        }
    }

    /// Looks at what the peer says that it has taken.
    fn take_credit(&self, out: &mut Outgoing) -> Result<(), Cause> {
        let words = self.word.as_ptr().cast::<AtomicU64>();
        // SAFETY: a page, aligned; the device writes it, and everybody here reads it by atomics only.
        let word = |n| unsafe { (*words.add(n)).load(Ordering::Acquire) };
        // Zeros are what is there before the first.
        if let Some(credit) = Credit::from_words([word(0), word(1), word(2)]) {
            out.flow.credit(credit)?;
        }
        Ok(())
    }

    /// The reason behind a receive request that was flushed out of a broken queue pair.
    pub(super) fn reason(&self, status: u32) -> Cause {
        if let Some(cause) = self.happened().or(self.cause()) {
            return cause;
        }
        match self.drive() {
            Err(cause) => cause,
            Ok(()) => Cause::Status(Side::Receive, status),
        }
    }

    /// Descriptor that is readable when something happened to the connection.
    pub(super) fn events_fd(&self) -> std::os::fd::RawFd {
        self.events.fd()
    }

    /// What happened to the connection as a whole, if it is the end of it.
    pub(super) fn happened(&self) -> Option<Cause> {
        loop {
            let event = match self.events.next() {
                Ok(Some(event)) => event,
                Ok(None) => return None,
                Err(TransportError::Io { doing, source }) => {
                    return Some(Cause::Call(doing, source.raw_os_error().unwrap_or(libc::EIO)));
                }
                Err(_) => return Some(Cause::Removed),
            };
            match event.kind() {
                kind::RDMA_CM_EVENT_DISCONNECTED => return Some(Cause::Closed),
                kind::RDMA_CM_EVENT_DEVICE_REMOVAL => return Some(Cause::Removed),
                _ => {}
            }
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("placed", &self.placed()).finish_non_exhaustive()
    }
}

impl Placing for Connection {
    fn placed_by_now(&self) -> u64 {
        // What is wrong shows itself in the next wait.
        let _ = self.look_at_writes();
        self.placed()
    }
}
