//! A model of a transport that places bytes, for one property: whatever the primary was told is placed, the
//! backup hands out, however the connection ends.

use proptest::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{Duplex, ReceiveHalf, SendHalf, TransportError, Wake, Waker};
use crate::ack::AckState;
use crate::backup::{self, LogReader, LogReceiver, Next};
use crate::frame::{Flags, Kind, MAX_FRAME};
use crate::primary::{AckReceiver, AppendError, LogSender};

/// Bytes, first in, first out.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    taken: usize,
}

impl Queue {
    fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Moves up to `len` bytes to the end of `to`; how many.
    fn move_to(&mut self, len: usize, to: &mut Vec<u8>) -> usize {
        let len = len.min(self.len());
        to.extend_from_slice(&self.bytes[self.taken..self.taken + len]);
        self.taken += len;
        len
    }
}

/// The primary's adapter, the wire, and the ring in the backup's memory.
#[derive(Debug, Default)]
struct Wire {
    /// Flushed, and not placed.
    flushed: Queue,
    /// Placed, and not taken out by the backup.
    ring: Queue,
    /// Bytes placed so far, and how many of them the primary's adapter knows of.
    placed: u64,
    completed: u64,
    /// The backup has shut its door, or the primary is dead: nothing is placed any more.
    shut: bool,
}

type Shared = Arc<Mutex<Wire>>;

fn lock(wire: &Shared) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap()
}

#[derive(Debug)]
struct Sender {
    wire: Shared,
    buffer: rkyv::util::AlignedVec<16>,
    queued: usize,
}

impl SendHalf for Sender {
    fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.queued..]
    }

    fn commit(&mut self, len: usize) {
        self.queued += len;
    }

    fn queued(&self) -> usize {
        self.queued
    }

    fn capacity(&self) -> usize {
        self.buffer.len()
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        lock(&self.wire).flushed.bytes.extend_from_slice(&self.buffer[..self.queued]);
        self.queued = 0;
        Ok(())
    }

    fn finish(&mut self, _: Duration) -> Result<(), TransportError> {
        self.flush()
    }
}

#[derive(Debug)]
struct Completions(Shared, Waker);

impl ReceiveHalf for Completions {
    fn wait(&mut self, _: Option<Duration>) -> Result<Wake, TransportError> {
        Ok(Wake::default())
    }

    fn data(&self) -> &[u8] {
        &[]
    }

    fn consume(&mut self, _: usize) {}

    fn waker(&self) -> Waker {
        self.1.clone()
    }

    fn placed(&self) -> Option<u64> {
        Some(lock(&self.0).completed)
    }
}

#[derive(Debug)]
struct Backup {
    wire: Shared,
    window: Vec<u8>,
    /// Bytes that one wait takes out of the ring at most.
    step: usize,
    waker: Waker,
}

impl ReceiveHalf for Backup {
    fn wait(&mut self, _: Option<Duration>) -> Result<Wake, TransportError> {
        let mut wire = lock(&self.wire);
        match wire.ring.move_to(self.step, &mut self.window) {
            0 if wire.shut => Err(TransportError::Closed),
            len => Ok(Wake { data: len > 0, ..Wake::default() }),
        }
    }

    fn data(&self) -> &[u8] {
        &self.window
    }

    fn consume(&mut self, len: usize) {
        self.window.drain(..len);
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Duplex for Backup {
    fn reply(&mut self, _: &[u8]) -> Result<bool, TransportError> {
        Ok(true)
    }

    fn push(&mut self) -> Result<(), TransportError> {
        Ok(())
    }

    fn shut(&mut self) -> bool {
        lock(&self.wire).shut = true;
        true
    }
}

struct World {
    wire: Shared,
    sender: LogSender<Sender>,
    acks: AckReceiver<Completions>,
    receiver: LogReceiver<Backup>,
    reader: LogReader,
    /// Frames handed to the replay.
    replayed: u64,
    payload: Vec<u8>,
}

const NOW: Option<Duration> = Some(Duration::ZERO);

impl World {
    fn new(step: usize) -> Self {
        let wire = Shared::default();
        let state = Arc::new(AckState::placing());
        let mut buffer = rkyv::util::AlignedVec::new();
        buffer.resize(2 * MAX_FRAME, 0);
        let sender = Sender { wire: wire.clone(), buffer, queued: 0 };
        let backup = Backup { wire: wire.clone(), window: vec![], step, waker: Waker::new().unwrap() };
        let (mut receiver, reader) = backup::pair(backup, 1, 0);
        receiver.count_as_placed();
        Self {
            sender: LogSender::new(sender, 1, state.clone()),
            acks: AckReceiver::new(Completions(wire.clone(), Waker::new().unwrap()), 1, state),
            receiver,
            reader,
            wire,
            replayed: 0,
            payload: (0..MAX_FRAME).map(|n| n as u8).collect(),
        }
    }

    fn append(&mut self, len: usize) {
        match self.sender.append_bytes(Kind::Batch, Flags::OUTPUT, 1, &self.payload[..len]) {
            Ok(_) | Err(AppendError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn place(&self, len: usize) {
        let wire = &mut *lock(&self.wire);
        if !wire.shut {
            wire.placed += wire.flushed.move_to(len, &mut wire.ring.bytes) as u64;
        }
    }

    /// The primary's adapter hears of some of what was placed.
    fn complete(&mut self, len: usize) {
        {
            let mut wire = lock(&self.wire);
            wire.completed = wire.placed.min(wire.completed.saturating_add(len as u64));
        }
        let before = self.sender.acks().received();
        let heard = self.acks.poll(NOW, || 1).unwrap();
        let now = self.sender.acks().received();
        assert_eq!(heard.placed.map(|placed| placed.sequence), (now > before).then_some(now));
    }

    /// The connection has ended: all that the primary counts on is handed out, then the end.
    fn drain(&mut self) {
        // Outputs that wait for frames up to here have left.
        let counted_on = self.sender.acks().received();
        let mut lost = false;
        for _ in 0..100_000 {
            // The replay is slow: the ring is full for most of the time.
            for _ in 0..8 {
                lost = lost || self.receiver.poll(NOW).is_err();
            }
            if !self.replay(1) {
                break;
            }
        }
        assert!(lost, "the end is told");
        assert!(self.replayed >= counted_on, "{} of {counted_on} frames", self.replayed);
        assert_eq!(self.replayed, self.receiver.received());
    }

    fn replay(&mut self, frames: usize) -> bool {
        for _ in 0..frames {
            match self.reader.next(NOW).unwrap() {
                Next::Frame(frame) => {
                    assert_eq!(frame.header.sequence, self.replayed + 1);
                    let len = frame.payload.len();
                    assert_eq!(frame.payload, &self.payload[..len]);
                }
                Next::Empty => return true,
                Next::End => return false,
            }
            self.replayed += 1;
            self.reader.release();
        }
        true
    }
}

#[test]
fn a_full_ring_at_the_end_loses_nothing() {
    for shut in [true, false] {
        let mut world = World::new(3_000_000);
        for _ in 0..40 {
            world.append(1_000_000);
            world.place(usize::MAX);
            world.complete(usize::MAX);
        }
        for _ in 0..40 {
            world.receiver.poll(NOW).unwrap();
        }
        assert!(world.receiver.received() < 20, "the ring is full");
        if shut {
            assert!(world.receiver.shut());
        } else {
            lock(&world.wire).shut = true;
        }
        world.drain();
        assert_eq!(world.replayed, 40);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Place(usize),
    Complete(usize),
    Poll,
    Replay(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || prop_oneof![0_usize..200, 0_usize..5_000_000];
    let step = prop_oneof![
        3 => prop_oneof![0_usize..100, 0_usize..4_000_000].prop_map(Step::Append),
        3 => bytes().prop_map(Step::Place),
        3 => bytes().prop_map(Step::Complete),
        4 => Just(Step::Poll),
        1 => (0_usize..3).prop_map(Step::Replay),
    ];
    proptest::collection::vec(step, 1..160)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// At any moment the primary dies, or the backup shuts its door with what it has not read yet, its own
    /// ring full or not; completions that were on their way may still arrive at a primary that lives.
    #[test]
    fn what_was_placed_is_handed_out_however_it_ends(
        steps in steps(), window in 1_000_usize..3_000_000, shut in any::<bool>(), late in any::<bool>(),
    ) {
        let mut world = World::new(window);
        for step in steps {
            match step {
                Step::Append(len) => world.append(len),
                Step::Place(len) => world.place(len),
                Step::Complete(len) => world.complete(len),
                Step::Poll => {
                    world.receiver.poll(NOW).unwrap();
                }
                Step::Replay(frames) => prop_assert!(world.replay(frames)),
            }
        }
        if shut {
            prop_assert!(world.receiver.shut());
        } else {
            lock(&world.wire).shut = true;
        }
        world.place(usize::MAX);
        if late {
            world.complete(usize::MAX);
        }
        world.drain();
    }
}
