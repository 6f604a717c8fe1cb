//! The primary's end: append, flush, acknowledgements.
//!
//! The vCPU thread owns the [`LogSender`]: it encodes entries straight into the send buffer and hands
//! them to the network itself, without a switch to another thread. The I/O thread owns the
//! [`AckReceiver`]. They share an [`AckState`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

use crate::ack::{Ack, AckState, Placed};
use crate::codec::{Encode, EncodeError, Encoder};
use crate::frame::{ALIGN, Envelope, Flags, Frame, FrameError, HEADER_LEN, Header, Kind, frame_len, seal};
use crate::glance::AckGlance;
use crate::loss::Loss;
use crate::transport::{ReceiveHalf, SendHalf, TransportError, Wake};

/// Log that nobody waits for is offered to the network in runs of so many bytes. Over loopback a quarter more bytes
/// a second than in runs of 64 KiB: fewer calls, and fewer times that the backup is woken.
const FLUSH_AT: usize = 256 << 10;

/// Why an entry was not appended. The sequence number was not used up.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The bounded buffer has no room: the backup, or the network to it, is slower than the machine.
    /// Stall: flush, wait for [`AckState::news`] with a timeout of a millisecond or so, and try again.
    #[error("the log buffer is full: {queued} of {capacity} bytes wait for the network")]
    Full {
        /// Bytes that wait.
        queued: usize,
        /// Bytes the buffer holds.
        capacity: usize,
    },
    /// The value is not for the log: too long, or not archivable.
    #[error("the entry cannot be logged")]
    Encode(#[from] EncodeError),
    /// The channel is lost.
    #[error(transparent)]
    Loss(#[from] Loss),
}

/// Puts entries on the wire.
pub struct LogSender<S> {
    half: S,
    acks: Arc<AckState>,
    encoder: Encoder,
    generation: u64,
    sent: u64,
    bytes: u64,
    /// Bytes appended since the last flush or offer.
    unflushed: usize,
    lost: bool,
}

impl<S: fmt::Debug> fmt::Debug for LogSender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { half, generation, sent, .. } = self;
        f.debug_struct("LogSender")
            .field("generation", generation)
            .field("sent", sent)
            .field("half", half)
            .finish()
    }
}

impl<S: SendHalf> LogSender<S> {
    /// A sender for the generation agreed in the handshake. `acks` must be new: sequence numbers start
    /// at 1.
    pub fn new(half: S, generation: u64, acks: Arc<AckState>) -> Self {
        Self { half, acks, encoder: Encoder::new(), generation, sent: 0, bytes: 0, unflushed: 0, lost: false }
    }

    /// Appends one value as a frame and returns its sequence number. `stamp` is the caller's clock,
    /// echoed by the ack (0 for none). With [`Flags::OUTPUT`] everything appended is flushed at once;
    /// without it the frame may wait for company until [`Self::flush`], or until 256 KiB wait.
    ///
    /// # Errors
    /// Any [`AppendError`]. After [`AppendError::Full`] the same value can be appended again.
    pub fn append<T: Encode>(
        &mut self,
        kind: Kind,
        flags: Flags,
        stamp: u64,
        value: &T,
    ) -> Result<u64, AppendError> {
        self.append_and(kind, flags, stamp, value, |_| {})
    }

    /// As [`Self::append`]; `encoded` is called with the sequence number between encoding and flush.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_and<T: Encode>(
        &mut self,
        kind: Kind,
        flags: Flags,
        stamp: u64,
        value: &T,
        encoded: impl FnOnce(u64),
    ) -> Result<u64, AppendError> {
        let header = self.next_header(kind, flags, stamp)?;
        let room = self.half.room();
        match self.encoder.encode(&header, value, room) {
            Ok(len) => {
                encoded(header.sequence);
                self.appended(&header, len)
            }
            Err(EncodeError::NoRoom { room }) => Err(self.no_room(room)),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Self::append`], for a payload that is encoded already.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_bytes(
        &mut self,
        kind: Kind,
        flags: Flags,
        stamp: u64,
        payload: &[u8],
    ) -> Result<u64, AppendError> {
        let header = self.next_header(kind, flags, stamp)?;
        let room = self.half.room();
        let available = room.len();
        if frame_len(payload.len()) <= available {
            room[HEADER_LEN..HEADER_LEN + payload.len()].copy_from_slice(payload);
        }
        match seal(room, &header, payload.len()) {
            Ok(len) => self.appended(&header, len),
            Err(FrameError::Truncated { .. }) => Err(self.no_room(available)),
            Err(_) => Err(EncodeError::TooLong.into()),
        }
    }

    /// Appends a frame without payload and flushes: keeps the stream from looking dead, and brings back
    /// an ack with the backup's progress.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn heartbeat(&mut self, stamp: u64) -> Result<u64, AppendError> {
        let sequence = self.append_bytes(Kind::Heartbeat, Flags::NONE, stamp, &[])?;
        self.flush()?;
        Ok(sequence)
    }

    /// Hands everything appended to the network. Does not wait: what the network cannot take at once it
    /// takes later by itself.
    ///
    /// # Errors
    /// The channel is lost.
    pub fn flush(&mut self) -> Result<(), Loss> {
        self.hand_over(S::flush)
    }

    /// Hands everything appended to the network if it takes it now; if not, a later call does.
    ///
    /// # Errors
    /// The channel is lost.
    pub fn offer(&mut self) -> Result<(), Loss> {
        self.hand_over(S::offer)
    }

    fn hand_over(&mut self, how: impl FnOnce(&mut S) -> Result<(), TransportError>) -> Result<(), Loss> {
        if self.lost {
            return Err(Loss::LostBefore);
        }
        self.unflushed = 0;
        how(&mut self.half).map_err(|error| {
            self.lost = true;
            Loss::Transport(error)
        })
    }

    /// Ends the log in good order: a last frame says so, and all bytes are with the network when this
    /// returns. Whether the backup has them, only its acks say.
    ///
    /// # Errors
    /// The channel is lost, or the bytes were not taken within `patience`.
    pub fn finish(&mut self, patience: Duration) -> Result<u64, AppendError> {
        let goodbye = self.append_bytes(Kind::Goodbye, Flags::OUTPUT, 0, &[])?;
        self.half.finish(patience).map_err(Loss::Transport)?;
        Ok(goodbye)
    }

    /// Sequence number of the last frame appended; 0 for none. An output made by now may leave when
    /// [`AckState::received`] has reached it.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes appended since the start, headers included.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that the network has not taken yet.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.half.queued()
    }

    /// Bytes that may wait for the network, less what frames leave unused.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.half.capacity()
    }

    /// What the backup has acknowledged.
    #[must_use]
    pub const fn acks(&self) -> &Arc<AckState> {
        &self.acks
    }

    /// The generation every frame carries.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    fn next_header(&self, kind: Kind, flags: Flags, stamp: u64) -> Result<Header, Loss> {
        if self.lost {
            return Err(Loss::LostBefore);
        }
        Ok(Header { kind, flags, generation: self.generation, sequence: self.sent + 1, stamp })
    }

    fn appended(&mut self, header: &Header, len: usize) -> Result<u64, AppendError> {
        self.half.commit(len);
        self.sent = header.sequence;
        self.bytes += len as u64;
        self.acks.note_sent(self.sent, self.bytes, header.stamp);
        self.unflushed += len;
        if header.flags.contains(Flags::OUTPUT) {
            self.flush()?;
        } else if self.unflushed >= FLUSH_AT {
            self.offer()?;
        }
        Ok(self.sent)
    }

    fn no_room(&self, room: usize) -> AppendError {
        if self.half.queued() == 0 {
            // An empty buffer takes every frame that any buffer takes.
            return EncodeError::NoRoom { room }.into();
        }
        AppendError::Full { queued: self.half.queued(), capacity: self.half.capacity() }
    }
}

/// Hears the acks.
pub struct AckReceiver<R> {
    half: R,
    acks: Arc<AckState>,
    generation: u64,
    heard: u64,
    scratch: AckFrame,
    lost: bool,
}

/// Ack frames come in at any alignment; this is where they are read.
#[repr(align(16))]
pub(crate) struct AckFrame(pub(crate) [u8; crate::ack::ACK_FRAME_LEN]);

const _: () = assert!(align_of::<AckFrame>() == ALIGN);

impl<R: fmt::Debug> fmt::Debug for AckReceiver<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { half, generation, heard, .. } = self;
        f.debug_struct("AckReceiver")
            .field("generation", generation)
            .field("heard", heard)
            .field("half", half)
            .finish()
    }
}

/// What one [`AckReceiver::poll`] brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The newest ack, if any came.
    pub ack: Option<Ack>,
    /// The newest frame that the transport has placed in the backup's memory, if it is news: with
    /// [`AckState::placing`] only.
    pub placed: Option<Placed>,
    /// Whether a [`crate::transport::Waker`] ended the wait.
    pub woken: bool,
    /// Whether the descriptor that is watched is readable.
    pub watched: bool,
}

impl<R: ReceiveHalf> AckReceiver<R> {
    /// A receiver for the generation agreed in the handshake, reporting to `acks`.
    pub fn new(half: R, generation: u64, acks: Arc<AckState>) -> Self {
        let scratch = AckFrame([0; crate::ack::ACK_FRAME_LEN]);
        Self { half, acks, generation, heard: 0, scratch, lost: false }
    }

    /// Waits for acks, a wake, or the timeout (none: for ever), takes in all acks at hand and rings
    /// [`AckState::news`] if there were any. `clock` is read after the wait and becomes
    /// [`AckState::heard_at`].
    ///
    /// # Errors
    /// The channel is lost. Acks taken in before the fault count.
    pub fn poll(&mut self, timeout: Option<Duration>, clock: impl FnOnce() -> u64) -> Result<Heard, Loss> {
        if self.lost {
            return Err(Loss::LostBefore);
        }
        let outcome = self.half.wait(timeout).map_err(Loss::Transport);
        // First: bytes that were placed are so whatever else went wrong.
        let placed = self.half.placed().and_then(|bytes| self.acks.place(bytes));
        let mut newest = None;
        let taken = self.take(clock, &mut newest);
        if newest.is_some() || placed.is_some() {
            self.acks.news().ring();
        }
        match taken.and(outcome) {
            Ok(Wake { woken, watched, .. }) => Ok(Heard { ack: newest, placed, woken, watched }),
            Err(loss) => {
                self.lost = true;
                self.acks.news().ring();
                Err(loss)
            }
        }
    }

    /// From now on a [`Self::poll`] also ends when this descriptor is readable.
    ///
    /// # Errors
    /// The transport cannot watch descriptors.
    pub fn watch(&mut self, fd: std::os::fd::OwnedFd) -> Result<(), Loss> {
        Ok(self.half.watch(fd)?)
    }

    /// For looks at acks from another thread. `None`: this transport does not show them.
    #[must_use]
    pub fn glance(&self) -> Option<AckGlance> {
        let glance = self.half.glance()?;
        Some(AckGlance::new(glance, self.generation, Arc::clone(&self.acks)))
    }

    /// Ends a [`Self::poll`] from another thread.
    #[must_use]
    pub fn waker(&self) -> crate::transport::Waker {
        self.half.waker()
    }

    fn take(&mut self, clock: impl FnOnce() -> u64, newest: &mut Option<Ack>) -> Result<(), Loss> {
        if self.half.data().len() < HEADER_LEN {
            return Ok(());
        }
        let now = clock();
        while self.half.data().len() >= HEADER_LEN {
            let damaged = |error| Loss::Frame { after: self.heard, error };
            let envelope = Envelope::decode(self.half.data()).map_err(damaged)?;
            let header = envelope.header;
            if header.kind != Kind::Ack {
                return Err(Loss::Direction(header.kind));
            }
            let Some(bytes) = self.scratch.0.get_mut(..envelope.frame_len()) else {
                return Err(crate::ack::AckError::Length(envelope.frame_len() - HEADER_LEN).into());
            };
            let Some(whole) = self.half.data().get(..envelope.frame_len()) else { break };
            bytes.copy_from_slice(whole);
            let frame = Frame::decode(bytes).map_err(damaged)?;
            if header.generation != self.generation {
                return Err(Loss::Generation { ours: self.generation, found: header.generation });
            }
            if header.sequence != self.heard + 1 {
                return Err(Loss::Gap { expected: self.heard + 1, found: header.sequence });
            }
            let ack = Ack::decode(frame.payload)?;
            self.acks.take(&ack, now)?;
            self.heard = header.sequence;
            *newest = Some(ack);
            self.half.consume(envelope.frame_len());
        }
        Ok(())
    }
}
