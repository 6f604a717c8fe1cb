//! Packets and writes that leave by themselves: their log is acknowledged when they are made.
//!
//! Most of them rely on log that was sent before the guest computed them, and the ack has come by then. The thread that made
//! them finds it in the socket and lets them out, by the same rule as the gate: all before them have left, their
//! log is acknowledged, the lease holds. To wake the side thread for it would take longer than a packet does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandem_logchan::glance::AckGlance;

use super::burst::Burst;
use super::clock::now;
use super::shared::Shared;
use crate::machine::output::Packet;
use crate::role::Moment;

/// The way past the gate. Owned by the vCPU thread.
#[derive(Debug)]
pub(super) struct Passage {
    burst: Burst,
    acks: AckGlance,
    shared: Arc<Shared>,
    /// The last frame that is known to be acknowledged, and the one that the packets in the burst rely on.
    known: u64,
    relies: u64,
    /// A look was in vain since the guest made outputs last.
    vain: bool,
    /// Time that packets of the guest's last kick took to write, in nanoseconds.
    written: u64,
}

/// Outputs that have left together: packets, or a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) outputs: u32,
    /// When it was their turn, and when they had left.
    pub(super) turn: Moment,
    pub(super) left: Moment,
    /// How long those before them took, in nanoseconds.
    pub(super) queued: u64,
}

impl Passage {
    pub(super) const fn new(burst: Burst, acks: AckGlance, shared: Arc<Shared>) -> Self {
        Self { burst, acks, shared, known: 0, relies: 0, vain: false, written: 0 }
    }

    /// The guest kicked off what follows.
    pub(super) const fn kicked(&mut self) {
        self.written = 0;
    }

    /// All that the guest has put out at this exit has come by.
    pub(super) const fn settle(&mut self) {
        self.vain = false;
    }

    /// Whether packets wait to leave together.
    pub(super) const fn is_waiting(&self) -> bool {
        self.burst.len() > 0
    }

    fn is_acknowledged(&mut self, sequence: u64) -> bool {
        if self.known < sequence && !self.vain {
            // Who listens takes acks in as they come: there is nothing more to be seen in the socket.
            let taken_in = self.shared.listening.load(Ordering::Relaxed);
            self.known = self.acks.received(if taken_in { 0 } else { sequence });
        }
        self.vain = self.known < sequence;
        !self.vain
    }

    /// The time now, if an output that relies on the log up to frame `sequence` may leave, and all outputs before it have.
    pub(super) fn admits(&mut self, sequence: u64) -> Option<Moment> {
        if self.is_waiting() || !self.is_acknowledged(sequence) {
            return None;
        }
        self.shared.lease.holds().map(Moment::from_nanos)
    }

    /// Takes a packet that may leave with the next [`Self::leave`]: its log, up to frame `sequence`, is acknowledged. All
    /// outputs before it must have left, or wait here. `false`: it may not, or there is no room before the others have left.
    pub(super) fn take(&mut self, nic: u8, packet: &Packet<'_>, sequence: u64) -> bool {
        let taken = self.is_acknowledged(sequence) && self.burst.push(nic, packet);
        if taken {
            self.relies = sequence;
        }
        taken
    }

    /// Lets them out, if the lease holds; if not, they stay.
    pub(super) fn leave(&mut self) -> Option<Left> {
        let outputs = self.burst.len() as u32;
        let turn = Moment::from_nanos(self.burst.write(&self.shared.lease)?);
        let left = now();
        let queued = self.written;
        self.written += left.since(turn);
        Some(Left { outputs, turn, left, queued })
    }

    /// The packets that may not leave, for the gate; with the frame that they rely on. Call [`Self::forget`] behind it.
    pub(super) fn stranded(&self) -> (u64, impl Iterator<Item = (u8, Packet<'_>)>) {
        (self.relies, self.burst.packets())
    }

    /// They wait elsewhere.
    pub(super) fn forget(&mut self) {
        self.burst.clear();
    }
}
