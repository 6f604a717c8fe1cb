//! The backup's end: frames off the wire into the ring, acknowledged on receipt.
//!
//! The receive thread owns the [`LogReceiver`]: it checks each frame, puts it into the ring and
//! acknowledges it, all without another thread. The replay thread owns the [`LogReader`], reads frames
//! where they lie, and tells [`Progress`] how far it has come; that rides on the acks.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ack::{ACK_FRAME_LEN, Ack, AckFlags};
use crate::doorbell::Doorbell;
use crate::frame::{Envelope, Frame, FrameError, HEADER_LEN, Kind, MAX_FRAME};
use crate::loss::Loss;
use crate::polling::HaltPolling;
use crate::progress::Progress;
use crate::ring::{Consumer, Producer, ReserveError, ring};
use crate::transport::{Duplex, Waker};

/// Both ends of the way from the wire to the replay: a ring of at least `ring_bytes` (never less than
/// what two frames of the largest size need), frames expected for `generation`, from sequence number 1.
pub fn pair<D: Duplex>(transport: D, generation: u64, ring_bytes: usize) -> (LogReceiver<D>, LogReader) {
    let (producer, consumer) = ring(ring_bytes.max(2 * (MAX_FRAME + 64)));
    let frames = Arc::new(Doorbell::new());
    let progress = Arc::new(Progress::new());
    let reader = LogReader {
        consumer,
        frames: frames.clone(),
        room: transport.waker(),
        progress: progress.clone(),
        polling: HaltPolling::new(Duration::ZERO),
    };
    let receiver = LogReceiver {
        transport,
        ring: producer,
        frames,
        progress,
        generation,
        received: 0,
        acks: 0,
        echo: 0,
        bytes: 0,
        partial: None,
        ack_owed: false,
        placed: false,
        over: None,
        lost: false,
    };
    (receiver, reader)
}

/// Takes frames off the wire.
pub struct LogReceiver<D> {
    transport: D,
    ring: Producer,
    frames: Arc<Doorbell>,
    progress: Arc<Progress>,
    generation: u64,
    received: u64,
    acks: u64,
    echo: u64,
    bytes: u64,
    /// A frame that is being put together in the ring's reserved slot, and how much of it is there.
    partial: Option<(Envelope, usize)>,
    ack_owed: bool,
    /// What the primary counts on is what was placed, not what was acknowledged.
    placed: bool,
    /// The transport has ended, and frames that came before still wait for room in the ring.
    over: Option<Loss>,
    lost: bool,
}

impl<D: fmt::Debug> fmt::Debug for LogReceiver<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, generation, received, .. } = self;
        f.debug_struct("LogReceiver")
            .field("generation", generation)
            .field("received", received)
            .field("transport", transport)
            .finish_non_exhaustive()
    }
}

/// What one [`LogReceiver::poll`] brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Frames taken in and acknowledged.
    pub frames: u64,
    /// Whether a [`Waker`] ended the wait.
    pub woken: bool,
    /// Whether the descriptor that is watched is readable.
    pub watched: bool,
    /// The ring is full: nothing more is read until the replay has released frames.
    pub stalled: bool,
}

impl<D: Duplex> LogReceiver<D> {
    /// The primary counts on every frame that the transport has placed here, read or not
    /// ([`crate::ack::AckState::placing`]). So no loss is told before all that was placed is in the ring; and
    /// frames are acknowledged only by [`Self::acknowledge`], for nobody waits for it.
    pub const fn count_as_placed(&mut self) {
        self.placed = true;
    }

    /// Takes nothing more from the primary; polls put what came before into the ring, then tell the loss.
    /// `false`: the transport cannot do that.
    pub fn shut(&mut self) -> bool {
        self.transport.shut()
    }

    /// Waits for log, a wake, or the timeout (none: for ever); puts all whole frames into the ring and
    /// acknowledges the last of them. The ack goes out before the replay thread is woken, at the latest
    /// with the next poll: call it again without delay.
    ///
    /// # Errors
    /// The channel is lost; the ring is closed then, and the replay drains it. No frame that failed a
    /// check was put in. Frames taken in before the fault were acknowledged where that was possible.
    pub fn poll(&mut self, timeout: Option<Duration>) -> Result<Polled, Loss> {
        if self.lost {
            return Err(Loss::LostBefore);
        }
        let before = self.received;
        let polled = self.poll_checked(timeout);
        if self.received > before || polled.is_err() {
            // The ack first: waking a sleeper takes time that a waiting client would feel.
            if self.frames.has_sleeper() || polled.is_err() {
                let _ = self.transport.push();
            }
            if polled.is_err() {
                self.lost = true;
                self.ring.close();
            }
            self.frames.ring();
        }
        polled
    }

    fn poll_checked(&mut self, timeout: Option<Duration>) -> Result<Polled, Loss> {
        if let Some(loss) = self.over.take() {
            return self.take_the_rest(loss, timeout);
        }
        if self.ack_owed {
            self.acknowledge(AckFlags::default())?;
        }
        let before = self.received;
        // A stalled receiver first tries the bytes at hand; if they fit now, it need not wait.
        let mut stalled = self.take()?;
        let (mut woken, mut watched) = (false, false);
        if self.received == before {
            let wake = self.transport.wait(timeout);
            if let Ok(wake) = &wake {
                (woken, watched) = (wake.woken, wake.watched);
            }
            stalled = self.take().inspect_err(|_| self.acknowledge_if(before))?;
            if let Err(error) = wake {
                self.acknowledge_if(before);
                if !self.placed || !stalled {
                    return Err(error.into());
                }
                self.over = Some(error.into());
            }
        }
        self.acknowledge_if(before);
        Ok(Polled { frames: self.received - before, woken, watched, stalled })
    }

    /// The transport has ended: only the ring's room is waited for, a moment at a time.
    fn take_the_rest(&mut self, loss: Loss, timeout: Option<Duration>) -> Result<Polled, Loss> {
        const MOMENT: Duration = Duration::from_millis(2);
        let before = self.received;
        let mut stalled = self.take()?;
        if stalled && self.received == before {
            self.transport.waker().wait(timeout.map_or(MOMENT, |timeout| timeout.min(MOMENT)));
            stalled = self.take()?;
        }
        if !stalled {
            return Err(loss);
        }
        self.over = Some(loss);
        Ok(Polled { frames: self.received - before, stalled, ..Polled::default() })
    }

    fn acknowledge_if(&mut self, before: u64) {
        if self.received > before && !self.placed {
            // A broken transport shows itself in the next wait; frames received stay received.
            self.ack_owed |= self.acknowledge(AckFlags::default()).is_err();
        }
    }

    /// Queues an ack with the newest progress, beside those on receipt: for an idle or stalled channel,
    /// so that the primary sees the lag. It goes out with the next [`Self::poll`] or [`Self::push`].
    ///
    /// # Errors
    /// The channel is lost.
    pub fn acknowledge(&mut self, flags: AckFlags) -> Result<(), Loss> {
        self.progress.raise(flags);
        let executed = self.progress.load();
        let ack = Ack { received: self.received, executed, echo: self.echo, flags: self.progress.flags() };
        let mut frame = [0; ACK_FRAME_LEN];
        ack.encode(self.generation, self.acks + 1, &mut frame)
            .map_err(|error| Loss::Frame { after: self.received, error })?;
        // Acks are cumulative: one that finds no room is made up for by a later one.
        self.ack_owed = !self.transport.reply(&frame)?;
        if !self.ack_owed {
            self.acks += 1;
        }
        Ok(())
    }

    /// Sends queued acks now.
    ///
    /// # Errors
    /// The channel is lost.
    pub fn push(&mut self) -> Result<(), Loss> {
        Ok(self.transport.push()?)
    }

    /// Takes all whole frames at hand into the ring. `true`: the ring is full and frames wait.
    fn take(&mut self) -> Result<bool, Loss> {
        loop {
            let damaged = |after| move |error: FrameError| Loss::Frame { after, error };
            if self.partial.is_none() {
                let data = self.transport.data();
                if data.len() < HEADER_LEN {
                    return Ok(false);
                }
                let envelope = Envelope::decode(data).map_err(damaged(self.received))?;
                self.admit(&envelope)?;
                if !self.reserve(envelope.frame_len())? {
                    return Ok(true);
                }
                self.partial = Some((envelope, 0));
            }
            let Some((envelope, filled)) = &mut self.partial else { return Ok(false) };
            let slot = self.ring.slot();
            let data = self.transport.data();
            let step = data.len().min(slot.len() - *filled);
            slot[*filled..*filled + step].copy_from_slice(&data[..step]);
            *filled += step;
            let whole = *filled == slot.len();
            self.transport.consume(step);
            if !whole {
                return Ok(false);
            }
            envelope.verify(slot).map_err(damaged(self.received))?;
            let (header, len) = (envelope.header, slot.len());
            self.partial = None;
            self.ring.commit(len);
            self.received = header.sequence;
            self.bytes += len as u64;
            if header.stamp != 0 {
                self.echo = header.stamp;
            }
        }
    }

    /// Whether a frame may come now, by its header.
    fn admit(&self, envelope: &Envelope) -> Result<(), Loss> {
        let header = envelope.header;
        if header.kind == Kind::Ack {
            return Err(Loss::Direction(header.kind));
        }
        if header.generation != self.generation {
            return Err(Loss::Generation { ours: self.generation, found: header.generation });
        }
        if header.sequence != self.received + 1 {
            return Err(Loss::Gap { expected: self.received + 1, found: header.sequence });
        }
        Ok(())
    }

    /// A slot for a frame. `false`: no room, and the reader will wake this thread when there is some.
    fn reserve(&mut self, len: usize) -> Result<bool, Loss> {
        for announced in [false, true] {
            match self.ring.try_reserve(len) {
                Ok(_) => return Ok(true),
                Err(ReserveError::TooLong { len, max }) => return Err(Loss::RingTooSmall { len, max }),
                Err(ReserveError::Full) if announced => {}
                Err(ReserveError::Full) => self.ring.announce_starving(),
            }
        }
        Ok(false)
    }

    /// Sequence number of the last frame received; 0 for none.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Bytes of frames received, headers included.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the replay says how far it has come.
    #[must_use]
    pub const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Stamp of the last frame received that had one, which the acks echo; 0 for none.
    #[must_use]
    pub const fn echo(&self) -> u64 {
        self.echo
    }

    /// From now on a [`Self::poll`] also ends when this descriptor is readable.
    ///
    /// # Errors
    /// The transport cannot watch descriptors.
    pub fn watch(&mut self, fd: std::os::fd::OwnedFd) -> Result<(), Loss> {
        Ok(self.transport.watch(fd)?)
    }

    /// Ends a [`Self::poll`] from another thread.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.transport.waker()
    }
}

/// Whoever drops the receiver ends the log: the replay must not sleep for ever.
impl<D> Drop for LogReceiver<D> {
    fn drop(&mut self) {
        self.ring.close();
        self.frames.ring();
    }
}

/// Hands frames to the replay, where they lie in the ring.
#[derive(Debug)]
pub struct LogReader {
    consumer: Consumer,
    frames: Arc<Doorbell>,
    room: Waker,
    progress: Arc<Progress>,
    polling: HaltPolling,
}

/// What a [`LogReader::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// The oldest frame. It comes again until [`LogReader::release`].
    Frame(Frame<'a>),
    /// Nothing within the timeout.
    Empty,
    /// The channel is lost or ended, and everything received has been handed out: the end of the log.
    End,
}

impl LogReader {
    /// From now on [`Self::next`] looks for so long before it sleeps, while frames come as often as that; zero, as
    /// it begins: never. It takes the core's time, unless somebody else wants it.
    pub const fn poll_for(&mut self, limit: Duration) {
        self.polling = HaltPolling::new(limit);
    }

    /// The oldest frame not released, waiting for it up to the timeout (none: for ever).
    ///
    /// # Errors
    /// [`FrameError`] only if the ring's memory was overwritten: frames in it were verified.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Next<'_>, FrameError> {
        let mut began = None;
        loop {
            let seen = self.frames.look();
            if self.consumer.front().is_some() {
                break;
            }
            if self.consumer.is_finished() {
                return Ok(Next::End);
            }
            // A wake may be for nothing: what counts is the clock, which is read only where there is nothing to do.
            let waited = began.get_or_insert_with(Instant::now).elapsed();
            let left = timeout.map(|timeout| timeout.saturating_sub(waited));
            if left == Some(Duration::ZERO) {
                self.polling.waited(waited);
                return Ok(Next::Empty);
            }
            self.frames.poll_then_wait(seen, self.polling.window(), left);
        }
        self.polling.waited(began.map_or(Duration::ZERO, |began| began.elapsed()));
        self.consumer.front().map_or(Ok(Next::Empty), |bytes| Frame::verified_before(bytes).map(Next::Frame))
    }

    /// The payload of the frame that [`LogReader::next`] handed out last, where it lies; empty after its
    /// release.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.consumer.held().and_then(|bytes| Frame::verified_before(bytes).ok()).map_or(&[], |f| f.payload)
    }

    /// Gives the oldest frame's memory back.
    pub fn release(&mut self) {
        if self.consumer.release() {
            self.room.wake();
        }
    }

    /// Bytes received and not released, with the ring's own marks.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.consumer.used()
    }

    /// Where to say how far the replay has come.
    #[must_use]
    pub const fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::frame::{Flags, Header, encode};
    use crate::transport::inproc;

    /// The receiver rings once more for a frame that the reader has seen already, and a futex wakes for nothing.
    #[test]
    fn a_ring_for_nothing_does_not_end_the_wait_for_a_frame() {
        let timeout = Duration::from_millis(80);
        let (receiver, mut reader) = pair(inproc::link(4096).unwrap().backup, 1, 0);
        let bell = Arc::clone(&reader.frames);
        let ringer = std::thread::spawn(move || {
            for _ in 0..8 {
                std::thread::sleep(timeout / 20);
                bell.ring();
            }
        });
        let began = Instant::now();
        assert_eq!(reader.next(Some(timeout)).unwrap(), Next::Empty);
        assert!(began.elapsed() >= timeout);
        ringer.join().unwrap();
        assert_eq!(reader.next(Some(Duration::ZERO)).unwrap(), Next::Empty);
        drop(receiver);
        assert_eq!(reader.next(Some(timeout)).unwrap(), Next::End);
    }

    /// Sleeping is what rings for nobody have to find: a sleeper costs the receiver a system call.
    #[test]
    fn a_reader_that_polls_is_awake_while_frames_come_often() {
        const OFTEN: Duration = Duration::from_millis(200);
        let (mut receiver, mut reader) = pair(inproc::link(4096).unwrap().backup, 1, 0);
        reader.poll_for(OFTEN);
        let bell = Arc::clone(&reader.frames);
        // Frames that need not be waited for.
        for sequence in 1..=20 {
            let header = Header { kind: Kind::Batch, flags: Flags::NONE, generation: 1, sequence, stamp: 0 };
            let slot = receiver.ring.try_reserve(HEADER_LEN).unwrap();
            let len = encode(&header, &[], slot).unwrap();
            assert!(receiver.ring.commit(len));
            assert!(matches!(reader.next(None).unwrap(), Next::Frame(_)));
            reader.release();
        }
        // Whether it sleeps, each time after so long, in a wait for nothing.
        let mut sleeps = |wait, times: &[Duration]| {
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| assert_eq!(reader.next(Some(wait)).unwrap(), Next::Empty));
                let asleep = |time: &Duration| {
                    std::thread::sleep(*time);
                    bell.has_sleeper()
                };
                let asleep: Vec<bool> = times.iter().map(asleep).collect();
                waiting.join().unwrap();
                asleep
            })
        };
        assert_eq!(sleeps(4 * OFTEN, &[OFTEN / 10, 2 * OFTEN]), [false, true]);
        // That was in vain: the next time it sleeps at once.
        assert_eq!(sleeps(OFTEN, &[OFTEN / 10]), [true]);
    }
}
