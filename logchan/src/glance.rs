//! Acks that have come and that nobody has taken in yet.
//!
//! The thread that receives acks may sleep while nobody waits for one. Who then needs to know whether a frame is
//! acknowledged can look for itself, for a system call, where to wake that thread takes two switches between threads.

use std::fmt;
use std::sync::Arc;

use crate::ack::{ACK_FRAME_LEN, Ack, AckState};
use crate::frame::Frame;
use crate::primary::AckFrame;
use crate::transport::Glance;

/// Acks that a look sees at most: more than come between two heartbeats, at each of which they are taken in.
const ACKS: usize = 64;

/// Looks at acks from another thread than the one that takes them in.
pub struct AckGlance {
    glance: Glance,
    acks: Arc<AckState>,
    generation: u64,
    bytes: Box<[u8]>,
    frame: AckFrame,
}

impl fmt::Debug for AckGlance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AckGlance").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl AckGlance {
    pub(crate) fn new(glance: Glance, generation: u64, acks: Arc<AckState>) -> Self {
        let bytes = vec![0; ACKS * ACK_FRAME_LEN].into_boxed_slice();
        Self { glance, acks, generation, bytes, frame: AckFrame([0; ACK_FRAME_LEN]) }
    }

    /// Sequence number of the last frame that is known to be acknowledged: never more than what is, and sometimes less.
    /// No system call if `wanted` is known to be acknowledged already, else one; with log that counts as it is placed, none.
    ///
    /// Nothing that is wrong with what lies there is told: whoever takes it in finds it too.
    #[must_use]
    pub fn received(&mut self, wanted: u64) -> u64 {
        let known = self.acks.received();
        if known >= wanted {
            return known;
        }
        let peek = match &self.glance {
            Glance::Stream(peek) => peek,
            Glance::Placed(placing) => return known.max(self.acks.whole_frames(placing.placed_by_now())),
        };
        let len = peek.look(&mut self.bytes);
        // The other thread takes in whole acks, as they come: where one ends, the next begins. If not, this is no frame.
        let Some(newest) = self.bytes[..len].chunks_exact(ACK_FRAME_LEN).next_back() else { return known };
        self.frame.0.copy_from_slice(newest);
        self.read().map_or(known, |received| known.max(received))
    }

    fn read(&self) -> Option<u64> {
        let frame =
            Frame::decode(&self.frame.0).ok().filter(|frame| frame.header.generation == self.generation)?;
        let ack = Ack::from_frame(&frame).ok()??;
        (ack.received <= self.acks.sent()).then_some(ack.received)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::primary::AckReceiver;
    use crate::progress::Executed;
    use crate::transport::Placing;
    use crate::transport::tcp::{TcpConfig, TcpReceive, connect, primary};

    const GENERATION: u64 = 3;

    fn frame(generation: u64, sequence: u64, received: u64) -> AckFrame {
        let ack = Ack { received, executed: Executed::default(), echo: 0, ..Ack::default() };
        let mut frame = AckFrame([0; ACK_FRAME_LEN]);
        ack.encode(generation, sequence, &mut frame.0).unwrap();
        frame
    }

    fn link(sent: u64) -> (AckReceiver<TcpReceive>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
        let (_, half) = primary(stream, &TcpConfig::default()).unwrap();
        let acks = Arc::new(AckState::new());
        acks.note_sent(sent, 0, 0);
        (AckReceiver::new(half, GENERATION, acks), listener.accept().unwrap().0)
    }

    /// What a look sees, once it sees anything or time is up.
    fn seen(glance: &mut AckGlance, wanted: u64) -> u64 {
        let begun = std::time::Instant::now();
        loop {
            let received = glance.received(wanted);
            if received >= wanted || begun.elapsed() > Duration::from_millis(200) {
                return received;
            }
        }
    }

    #[test]
    fn a_look_sees_the_newest_ack_and_takes_none() {
        let (mut receiver, mut backup) = link(9);
        let mut glance = receiver.glance().unwrap();
        assert_eq!(glance.received(1), 0);
        for (sequence, received) in [(1, 4), (2, 5), (3, 7)] {
            backup.write_all(&frame(GENERATION, sequence, received).0).unwrap();
            assert_eq!(seen(&mut glance, received), received);
        }
        let heard = receiver.poll(Some(Duration::from_secs(5)), || 1).unwrap();
        assert_eq!(heard.ack.unwrap().received, 7);
        // Known without a look, and nothing is left to look at.
        assert_eq!((glance.received(7), glance.received(8)), (7, 7));
    }

    #[derive(Debug, Default)]
    struct Adapter(std::sync::atomic::AtomicU64);

    impl Placing for Adapter {
        fn placed_by_now(&self) -> u64 {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    #[test]
    fn a_look_at_what_is_placed_counts_whole_frames_and_leaves_the_news_to_who_waits_for_it() {
        let (adapter, acks) = (Arc::new(Adapter::default()), Arc::new(AckState::placing()));
        let placing: Arc<dyn Placing> = adapter.clone();
        let mut glance = AckGlance::new(Glance::Placed(placing), GENERATION, Arc::clone(&acks));
        for n in 1..=4 {
            acks.note_sent(n, 100 * n, 0);
        }
        for (bytes, whole) in [(0, 0), (99, 0), (100, 1), (299, 2), (400, 4)] {
            adapter.0.store(bytes, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(glance.received(4), whole);
        }
        assert_eq!(acks.received(), 0);
        assert_eq!(acks.place(400).unwrap().sequence, 4, "news for the thread that receives");
        assert_eq!(glance.received(4), 4);
    }

    #[test]
    fn a_look_believes_nothing_that_the_receiver_would_refuse() {
        let damaged = {
            let mut frame = frame(GENERATION, 1, 5);
            frame.0[ACK_FRAME_LEN - 1] ^= 1;
            frame
        };
        for wrong in [frame(GENERATION + 1, 1, 5), frame(GENERATION, 1, 10), damaged] {
            let (mut receiver, mut backup) = link(9);
            let mut glance = receiver.glance().unwrap();
            backup.write_all(&wrong.0).unwrap();
            assert_eq!(seen(&mut glance, 1), 0);
            assert!(receiver.poll(Some(Duration::from_secs(5)), || 1).is_err());
        }
        // Half an ack is none; a broken connection is none either.
        let (receiver, mut backup) = link(9);
        let mut glance = receiver.glance().unwrap();
        backup.write_all(&frame(GENERATION, 1, 5).0[..ACK_FRAME_LEN / 2]).unwrap();
        assert_eq!(seen(&mut glance, 1), 0);
        drop(backup);
        assert_eq!(seen(&mut glance, 1), 0);
    }
}
