//! Packets that leave by themselves: their log is acknowledged when they are made.
//!
//! Most packets rely on log that was sent before the guest computed them, and the ack has come by then. The thread that made
//! them finds it in the socket and lets them out, by the same rule as the gate: all before them have left, their
//! log is acknowledged, the lease holds. To wake the side thread for it would take longer than the packet does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandem_logchan::glance::AckGlance;

use super::clock::now;
use super::shared::Shared;
use crate::host::priority::Burst;
use crate::host::tap::Tap;
use crate::role::Moment;

/// The way past the gate. Owned by the vCPU thread.
#[derive(Debug)]
pub(super) struct Passage {
    taps: Vec<Arc<Tap>>,
    acks: AckGlance,
    shared: Arc<Shared>,
    /// The last frame that is known to be acknowledged.
    known: u64,
    /// A look was in vain since the guest made outputs last.
    vain: bool,
    /// Several packets came in with the log that outputs rely on: as many will leave, to clients that wait.
    crowd: bool,
    burst: Burst,
    /// Time that packets of the guest's last kick took to write.
    written: u64,
}

/// A packet that has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// When it was its turn, and when it had left.
    pub(super) turn: Moment,
    pub(super) left: Moment,
    /// How long those before it took, in nanoseconds.
    pub(super) queued: u64,
}

impl Passage {
    pub(super) fn new(taps: Vec<Arc<Tap>>, acks: AckGlance, shared: Arc<Shared>) -> Self {
        Self { taps, acks, shared, known: 0, vain: false, crowd: false, burst: Burst::new(), written: 0 }
    }

    /// A batch with so many packets has been sent.
    pub(super) const fn sent(&mut self, packets: usize) {
        self.crowd = packets > 1;
    }

    /// The guest kicked off what follows.
    pub(super) const fn kicked(&mut self) {
        self.written = 0;
    }

    /// All that the guest has put out at this exit has come by.
    pub(super) fn settle(&mut self) {
        self.vain = false;
        self.burst.end();
    }

    /// Lets a packet out, if its log, up to frame `sequence`, is acknowledged and the lease holds. All outputs before
    /// it must have left.
    pub(super) fn send(&mut self, nic: u8, frame: &[u8], sequence: u64) -> Option<Left> {
        if self.known < sequence && !self.vain {
            self.known = self.acks.received(sequence);
        }
        self.vain = self.known < sequence;
        if self.vain {
            return None;
        }
        let tap = self.taps.get(usize::from(nic))?;
        if self.crowd {
            self.burst.begin();
        }
        // As late as can be, as in the side thread: nothing but the packet is behind it.
        let turn = now();
        if turn.as_nanos() >= self.shared.leased_until.load(Ordering::Acquire) {
            return None;
        }
        if let Err(error) = tap.write_frame(frame) {
            tracing::debug!(%error, "a packet was lost");
        }
        let left = now();
        let queued = self.written;
        self.written += left.since(turn);
        Some(Left { turn, left, queued })
    }
}
