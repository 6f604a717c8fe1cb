//! Acknowledgements: what the backup has received and executed.
//!
//! An ack travels as a frame of kind [`Kind::Ack`] with its own sequence numbers. "Received" means in
//! the backup's memory, checksum verified, in order: that is what the Output Rule waits for. Over RDMA it
//! may wait for less, by config: until the adapter says that the frame is placed ([`AckState::placing`]).
//! "Executed" is for lag and for the comparison of digests.
//!
//! | payload offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | sequence number of the last frame received |
//! | 8 | 8 | sequence number of the last frame executed |
//! | 16 | 8 | position executed |
//! | 24 | 8 | digest at that position |
//! | 32 | 8 | stamp of the last frame received that had one |
//! | 40 | 4 | flags |
//! | 44 | 4 | reserved, zero |

use thiserror::Error;

pub use crate::ack_flags::AckFlags;

use crate::doorbell::Doorbell;
use crate::frame::{self, Flags, Frame, FrameError, HEADER_LEN, Header, Kind};
use crate::progress::{Executed, Progress};
use crate::sync::{AtomicU64, Ordering};

/// Version of the ack layout; part of the schema digest.
pub const ACK_VERSION: u16 = 1;
/// Bytes of an ack's payload.
pub const ACK_LEN: usize = 48;
/// Bytes of an ack's frame.
pub const ACK_FRAME_LEN: usize = frame::frame_len(ACK_LEN);

/// One acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Sequence number of the last frame received; 0 for none. All before it were received too.
    pub received: u64,
    /// How far the replay has come.
    pub executed: Executed,
    /// Stamp of the last frame received that had one, in the primary's clock; 0 for none.
    pub echo: u64,
    /// What else there is.
    pub flags: AckFlags,
}

/// Why a frame is not an ack to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AckError {
    /// The payload has another length.
    #[error("ack of {0} bytes instead of {ACK_LEN}")]
    Length(usize),
    /// A flag this version does not have, or a reserved field that is not zero.
    #[error("unknown ack flags {0:#x}")]
    Flags(u64),
    /// The backup says it received what was not sent yet.
    #[error("ack of frame {received}, but only {sent} were sent")]
    NeverSent {
        /// Sequence number acknowledged.
        received: u64,
        /// Last sequence number appended.
        sent: u64,
    },
    /// The backup says it executed what it did not receive.
    #[error("the backup executed frame {executed} but received only {received}")]
    ExecutedAhead {
        /// Sequence number executed.
        executed: u64,
        /// Sequence number received.
        received: u64,
    },
    /// Later acks say less than earlier ones.
    #[error("acks went backwards: {field} from {from} to {to}")]
    Backwards {
        /// What went back.
        field: &'static str,
        /// Value before.
        from: u64,
        /// Value now.
        to: u64,
    },
}

impl Ack {
    /// Writes the ack as a frame.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if `out` is shorter than [`ACK_FRAME_LEN`].
    pub fn encode(&self, generation: u64, sequence: u64, out: &mut [u8]) -> Result<usize, FrameError> {
        let mut payload = [0; ACK_LEN];
        let words = [
            self.received,
            self.executed.sequence,
            self.executed.position,
            self.executed.digest,
            self.echo,
            u64::from(self.flags.bits()),
        ];
        for (bytes, word) in payload.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let header = Header { kind: Kind::Ack, flags: Flags::NONE, generation, sequence, stamp: 0 };
        frame::encode(&header, &payload, out)
    }

    /// Reads the payload of an ack frame.
    ///
    /// # Errors
    /// [`AckError::Length`], [`AckError::Flags`], [`AckError::ExecutedAhead`].
    pub fn decode(payload: &[u8]) -> Result<Self, AckError> {
        if payload.len() != ACK_LEN {
            return Err(AckError::Length(payload.len()));
        }
        let mut words = [0_u64; 6];
        for (word, bytes) in words.iter_mut().zip(payload.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [received, sequence, position, digest, echo, flags] = words;
        if flags & !u64::from(AckFlags::KNOWN) != 0 {
            return Err(AckError::Flags(flags));
        }
        if sequence > received {
            return Err(AckError::ExecutedAhead { executed: sequence, received });
        }
        Ok(Self {
            received,
            executed: Executed { sequence, position, digest },
            echo,
            flags: AckFlags::from_bits(flags as u32),
        })
    }

    /// Reads an ack from its frame; `None` for a frame of another kind.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn from_frame(frame: &Frame<'_>) -> Result<Option<Self>, AckError> {
        (frame.header.kind == Kind::Ack).then(|| Self::decode(frame.payload)).transpose()
    }
}

const _: () = assert!(ACK_FRAME_LEN == HEADER_LEN + ACK_LEN);

/// Frames whose ends are remembered, to tell by bytes placed which frames are.
const ENDS: usize = 4096;

/// Where a frame ends in the stream, and its stamp.
#[derive(Debug, Default)]
struct End {
    offset: AtomicU64,
    stamp: AtomicU64,
}

/// The newest frame that is in the backup's memory as a whole, by the transport's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its sequence number.
    pub sequence: u64,
    /// Its stamp; 0 for none.
    pub stamp: u64,
}

/// What the primary knows of its backup: written by the thread that receives acks, read by any.
#[derive(Debug, Default)]
pub struct AckState {
    sent: AtomicU64,
    /// What the backup acknowledged.
    read: AtomicU64,
    /// The larger of that and what the transport placed.
    received: AtomicU64,
    /// Of the frame with number `n` at `n % ENDS`; empty where only the backup acknowledges.
    ends: Box<[End]>,
    executed: Progress,
    echo: AtomicU64,
    heard_at: AtomicU64,
    news: Doorbell,
}

impl AckState {
    /// Nothing sent, nothing acknowledged.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Self::new`], for a transport that knows by itself what it has placed in the backup's memory: what
    /// it has counts as received.
    #[must_use]
    pub fn placing() -> Self {
        Self { ends: (0..ENDS).map(|_| End::default()).collect(), ..Self::default() }
    }

    /// Sequence number of the last frame appended by the sender; 0 for none.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Sequence number of the last frame that is safe in the backup's memory; 0 for none.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// How far the backup's replay has come, as one consistent point.
    #[must_use]
    pub fn executed(&self) -> Executed {
        self.executed.load()
    }

    /// What the backup said beside.
    #[must_use]
    pub fn flags(&self) -> AckFlags {
        self.executed.flags()
    }

    /// Frames received by the backup but not executed yet.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.received().saturating_sub(self.executed().sequence)
    }

    /// Frames sent and not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        let received = self.received();
        self.sent().saturating_sub(received)
    }

    /// Stamp of the newest frame that the backup has acknowledged, in this side's clock; 0 for none.
    /// The caller's clock now, less this, is the age of the freshest news the backup has.
    #[must_use]
    pub fn echo(&self) -> u64 {
        self.echo.load(Ordering::Acquire)
    }

    /// When an ack came in last, in the clock of the caller of `AckReceiver::poll`; 0 for never.
    #[must_use]
    pub fn heard_at(&self) -> u64 {
        self.heard_at.load(Ordering::Acquire)
    }

    /// Rung after every ack: for a thread that waits for room, for lag to shrink, or for an ack.
    #[must_use]
    pub const fn news(&self) -> &Doorbell {
        &self.news
    }

    /// The frame with this number is about to be sent, and ends at this offset of the stream.
    pub(crate) fn note_sent(&self, sequence: u64, offset: u64, stamp: u64) {
        if let Some(end) = self.end_of(sequence) {
            end.offset.store(offset, Ordering::Relaxed);
            end.stamp.store(stamp, Ordering::Relaxed);
        }
        self.sent.store(sequence, Ordering::Release);
    }

    fn end_of(&self, sequence: u64) -> Option<&End> {
        self.ends.get(sequence as usize % ENDS)
    }

    /// So many bytes of the stream are in the backup's memory. The newest whole frame, if it is news. To be
    /// called by the thread that receives acks; the bell is not rung.
    ///
    /// Where more than [`ENDS`] frames are under way, a frame's end may be a later frame's: then it counts as
    /// placed when that one is. Late, never early.
    pub(crate) fn place(&self, bytes: u64) -> Option<Placed> {
        let newest = self.newest_within(bytes);
        if let Some(Placed { sequence, .. }) = newest {
            self.received.store(sequence, Ordering::Release);
        }
        newest
    }

    /// The last frame that is whole in so many bytes of the stream, and that this says of, as [`Self::place`] would; from any thread.
    pub(crate) fn whole_frames(&self, bytes: u64) -> u64 {
        self.newest_within(bytes).map_or_else(|| self.received(), |newest| newest.sequence)
    }

    fn newest_within(&self, bytes: u64) -> Option<Placed> {
        let (sent, before) = (self.sent(), self.received());
        let mut newest = None;
        for sequence in before + 1..=sent {
            let Some(end) = self.end_of(sequence) else { break };
            if end.offset.load(Ordering::Relaxed) > bytes {
                break;
            }
            newest = Some(Placed { sequence, stamp: end.stamp.load(Ordering::Relaxed) });
        }
        newest
    }

    /// Takes in an ack that arrived at `now`. To be called by one thread only; the bell is not rung.
    pub(crate) fn take(&self, ack: &Ack, now: u64) -> Result<(), AckError> {
        let sent = self.sent();
        if ack.received > sent {
            return Err(AckError::NeverSent { received: ack.received, sent });
        }
        let before = self.executed.load();
        for (field, from, to) in [
            ("frames received", self.read.load(Ordering::Relaxed), ack.received),
            ("frames executed", before.sequence, ack.executed.sequence),
            ("position executed", before.position, ack.executed.position),
        ] {
            if to < from {
                return Err(AckError::Backwards { field, from, to });
            }
        }
        if ack.executed != before {
            self.executed.store(ack.executed);
        }
        self.executed.raise(ack.flags);
        self.echo.store(ack.echo, Ordering::Release);
        self.heard_at.store(now, Ordering::Release);
        self.read.store(ack.received, Ordering::Relaxed);
        self.received.store(ack.received.max(self.received()), Ordering::Release);
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ack(received: u64, sequence: u64) -> Ack {
        let executed = Executed { sequence, position: sequence * 10, digest: 99 };
        Ack { received, executed, echo: 5, flags: AckFlags::DIVERGED }
    }

    #[test]
    fn an_ack_crosses_the_wire_unchanged() {
        let mut out = rkyv::util::AlignedVec::<16>::new();
        out.resize(ACK_FRAME_LEN, 0);
        assert_eq!(ack(9, 4).encode(2, 1, &mut out), Ok(ACK_FRAME_LEN));
        let frame = Frame::decode(&out).unwrap();
        assert_eq!(Ack::from_frame(&frame), Ok(Some(ack(9, 4))));
    }

    #[test]
    fn acks_that_cannot_be_true_are_refused() {
        let state = AckState::new();
        state.note_sent(10, 0, 0);
        assert_eq!(state.take(&ack(11, 0), 1), Err(AckError::NeverSent { received: 11, sent: 10 }));
        state.take(&ack(9, 4), 7).unwrap();
        assert_eq!((state.received(), state.lag(), state.unacknowledged()), (9, 5, 1));
        assert_eq!((state.echo(), state.heard_at()), (5, 7));
        assert!(state.flags().contains(AckFlags::DIVERGED));
        assert!(matches!(state.take(&ack(8, 4), 8), Err(AckError::Backwards { from: 9, to: 8, .. })));
        assert!(matches!(state.take(&ack(9, 3), 8), Err(AckError::Backwards { from: 4, to: 3, .. })));
        assert_eq!(state.heard_at(), 7, "a refused ack leaves no trace");
        let mut payload = [0; ACK_LEN];
        payload[8] = 1;
        assert_eq!(Ack::decode(&payload), Err(AckError::ExecutedAhead { executed: 1, received: 0 }));
        payload[44] = 1;
        assert!(matches!(Ack::decode(&payload), Err(AckError::Flags(_))));
        assert_eq!(Ack::decode(&payload[1..]), Err(AckError::Length(47)));
    }

    #[test]
    fn placed_bytes_are_frames_and_the_backups_own_acks_may_lag_behind() {
        let state = AckState::placing();
        for n in 1..=3 {
            state.note_sent(n, n * 100, n + 7);
        }
        assert_eq!(state.place(99), None);
        assert_eq!(state.place(299), Some(Placed { sequence: 2, stamp: 9 }));
        assert_eq!((state.received(), state.place(299)), (2, None));
        state.take(&ack(1, 1), 5).unwrap();
        assert_eq!((state.received(), state.lag()), (2, 1), "no step back");
        state.take(&ack(3, 1), 6).unwrap();
        assert_eq!((state.received(), state.place(300)), (3, None));
        assert!(matches!(state.take(&ack(2, 1), 7), Err(AckError::Backwards { from: 3, to: 2, .. })));
    }

    #[test]
    fn with_more_frames_under_way_than_are_remembered_nothing_counts_too_early() {
        let state = AckState::placing();
        let total = 3 * ENDS as u64 + 17;
        for n in 1..=total {
            state.note_sent(n, n * 10, 0);
        }
        for placed in (0..=total).step_by(5) {
            state.place(placed * 10);
            assert!(state.received() <= placed);
        }
        state.place(total * 10);
        assert_eq!(state.received(), total);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Ack::decode(&payload);
        }
    }
}
