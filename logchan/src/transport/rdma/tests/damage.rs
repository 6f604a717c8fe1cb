//! What is damaged in the ring after it was placed there: the backup refuses it, whatever the adapter acknowledged.

use super::*;
use crate::ack::AckState;
use crate::backup::{self, LogReader, LogReceiver, Next};
use crate::frame::{Flags, HEADER_LEN, Kind};
use crate::loss::Loss;
use crate::primary::{AckReceiver, LogSender};
use std::sync::Arc;

struct Channel {
    sender: LogSender<RdmaSend>,
    acks: AckReceiver<RdmaReceive>,
    state: Arc<AckState>,
    receiver: LogReceiver<RdmaDuplex>,
    reader: LogReader,
    /// The backup's ring, which the connection in `receiver` keeps.
    ring: *mut u8,
}

impl Channel {
    fn open(bed: &Bed, placed: bool) -> Self {
        let (send, acks, log) = bed.link(RdmaConfig { placed, ..small(Completion::Events) });
        let ring = log.connection().ring.as_ptr();
        let state = Arc::new(if placed { AckState::placing() } else { AckState::new() });
        let (mut receiver, reader) = backup::pair(log, 1, 0);
        if placed {
            receiver.count_as_placed();
        }
        let sender = LogSender::new(send, 1, state.clone());
        let acks = AckReceiver::new(acks, 1, state.clone());
        Self { sender, acks, state, receiver, reader, ring }
    }

    /// Sends a frame; where it begins in the ring.
    fn send(&mut self, payload: &Vec<u8>) -> usize {
        let start = self.sender.bytes();
        self.sender.append(Kind::Batch, Flags::OUTPUT, 1, payload).unwrap();
        self.sender.flush().unwrap();
        start as usize
    }

    /// Waits until the byte at this place of the ring is there: writes are placed in order.
    fn wait_for(&self, place: usize) {
        let deadline = Instant::now() + PATIENCE;
        // SAFETY: within the ring, which lives as long as `self.receiver`; the device writes it.
        while unsafe { std::ptr::read_volatile(self.ring.add(place)) } == 0 {
            assert!(Instant::now() < deadline, "nothing was placed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Flips a bit in the ring.
    fn damage(&self, place: usize) {
        // SAFETY: as above, and nobody reads it at this moment.
        unsafe {
            let byte = self.ring.add(place);
            byte.write_volatile(byte.read_volatile() ^ 0x10);
        }
    }

    /// Takes in so many frames.
    fn receive(&mut self, frames: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.receiver.received() < frames {
            self.receiver.poll(Some(Duration::from_millis(100))).unwrap();
            assert!(Instant::now() < deadline, "no frame came");
        }
    }

    /// What the replay gets to see until the end of the log.
    fn read_all(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.reader.next(Some(PATIENCE)).unwrap() {
                Next::Frame(frame) => all.push(frame.payload.to_vec()),
                Next::End => return all,
                Next::Empty => panic!("the log does not end"),
            }
            self.reader.release();
        }
    }
}

/// Bytes of a payload; they come first in its archive.
const PAYLOAD: usize = 200;

#[test]
fn a_frame_damaged_in_the_ring_is_refused_and_ends_the_channel() {
    let Some(bed) = Bed::find() else { return };
    // Its sequence number, its payload's length, the checksum itself, and the payload's first and a later byte.
    for (placed, place) in [24, 12, 40, HEADER_LEN, HEADER_LEN + PAYLOAD / 2].iter().enumerate() {
        let placed = placed % 2 == 1;
        let mut channel = Channel::open(&bed, placed);
        channel.send(&vec![1; PAYLOAD]);
        channel.receive(1);
        let start = channel.send(&vec![2; PAYLOAD]);
        let behind = channel.send(&vec![3; PAYLOAD]);
        channel.wait_for(behind);
        while placed && channel.state.received() < 3 {
            channel.acks.poll(Some(PATIENCE), || 1).unwrap();
        }
        channel.damage(start + place);
        let loss = loop {
            match channel.receiver.poll(Some(PATIENCE)) {
                Ok(polled) => assert_eq!(polled.frames, 0, "a damaged frame was taken"),
                Err(loss) => break loss,
            }
        };
        println!("placed: {placed}; byte {place}: {loss}: {:?}", std::error::Error::source(&loss));
        assert!(matches!(loss, Loss::Frame { after: 1, .. }), "{loss}");
        assert_eq!(channel.receiver.received(), 1, "nor was the good one behind it");
        assert!(matches!(channel.receiver.poll(Some(PATIENCE)), Err(Loss::LostBefore)));
        let read = channel.read_all();
        assert_eq!(read.len(), 1, "the replay sees what was good, and the end");
        assert!(read[0].starts_with(&[1; PAYLOAD]));
        drop((channel.receiver, channel.reader));
        let lost = loop {
            if let Err(loss) = channel.acks.poll(Some(PATIENCE), || 1) {
                break loss;
            }
        };
        println!("the primary: {lost}");
        let counted = channel.state.received();
        assert!(if placed { counted == 3 } else { counted <= 1 }, "{counted} frames count as received");
    }
}

/// What was checked is a copy: a peer, or a fault, that changes the ring afterwards changes nothing.
#[test]
fn a_frame_damaged_after_it_was_taken_is_whole() {
    let Some(bed) = Bed::find() else { return };
    let mut channel = Channel::open(&bed, false);
    let start = channel.send(&vec![1; PAYLOAD]);
    channel.receive(1);
    for place in 0..HEADER_LEN + PAYLOAD {
        channel.damage(start + place);
    }
    match channel.reader.next(Some(PATIENCE)).unwrap() {
        Next::Frame(frame) => assert!(frame.payload.starts_with(&[1; PAYLOAD])),
        other => panic!("{other:?}"),
    }
}
