//! What the protocol wants done.

use super::event::{Divergence, Heartbeat};
use super::throttle::Level;

/// One effect for the host, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send this to the peer by datagram.
    SendHeartbeat(Heartbeat),
    /// A backup: acknowledge this on the channel.
    SendAck(super::event::Ack),
    /// A primary: send the backup its welcome and begin its log.
    Welcome {
        /// The generation of the pair.
        generation: u64,
    },
    /// Run the guest from its beginning.
    StartGuest,
    /// Ask the arbiter, with this side's token, and bring back an [`super::Event::Verdict`].
    Claim {
        /// The generation to claim.
        generation: u64,
    },
    /// A primary: stop the guest between two instructions, flush the log, say
    /// [`super::Event::GuestStopped`].
    StopGuest,
    /// A primary: let the stopped guest run on.
    ResumeGuest,
    /// A primary: hold the vCPU (`true`), or no longer.
    Stall(bool),
    /// A primary: pause the vCPU for this share of the time, in per cent.
    Throttle(Level),
    /// Close the log channel. A primary logs no more; a backup acknowledges nothing more.
    CloseChannel,
    /// A backup, drained and with the right to: be the machine. Announce its addresses, re-issue disk
    /// requests in flight, let outputs out, go on from the last logged time.
    GoLive {
        /// The generation it won.
        generation: u64,
    },
    /// A primary: run on without a backup; held outputs may leave.
    RunAlone {
        /// The generation it won.
        generation: u64,
    },
    /// Stop the guest for good. Nothing may leave this side any more.
    Halt(HaltReason),
    /// Something that an operator should know.
    Report(Report),
}

/// Why a side stands still for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HaltReason {
    /// The peer has won this generation.
    Lost {
        /// The generation.
        generation: u64,
    },
    /// The peer took over as it was asked to.
    HandedOver {
        /// The generation it took.
        generation: u64,
    },
    /// It must not start: somebody has this generation, or a later one, already.
    Refused {
        /// The generation in which it would have started.
        generation: u64,
        /// The latest one known to be claimed.
        claimed: u64,
    },
    /// The operator wanted it to end.
    Left,
    /// The guest ended.
    Ended,
}

/// For the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// The peer is taken for lost.
    Suspects(Suspicion),
    /// The arbiter cannot be reached: outputs wait until it can.
    ArbiterUnreachable {
        /// The generation claimed.
        generation: u64,
    },
    /// Replay diverged: this backup will not go live.
    Diverged(Divergence),
    /// There is nobody to hand over to.
    NoPeer,
}

/// Why the peer is taken for lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspicion {
    /// Nothing was heard, on the datagrams or on the log, for the bound.
    Silent,
    /// The log channel is over.
    Channel(
        /// How it ended.
        super::event::ChannelLoss,
    ),
    /// Heartbeats are heard, but the log is not acknowledged any more.
    NoAcks,
    /// The peer itself says that it went to the arbiter.
    PeerClaims,
    /// The backup said that it cannot be used, or ends.
    PeerLeaves,
    /// The backup did not take over what was handed to it.
    NotTakenOver,
    /// The primary handed over.
    HandedOver,
}

/// The most actions that one event can lead to.
pub const MOST_ACTIONS: usize = 12;

/// A short list of actions, without allocation.
#[derive(Clone, Copy, Debug)]
pub struct Actions {
    list: [Action; MOST_ACTIONS],
    len: usize,
}

impl Default for Actions {
    fn default() -> Self {
        Self { list: [Action::StopGuest; MOST_ACTIONS], len: 0 }
    }
}

impl Actions {
    pub(super) fn push(&mut self, action: Action) {
        debug_assert!(self.len < MOST_ACTIONS, "an event led to too many actions: {:?}", self.as_slice());
        if self.len < MOST_ACTIONS {
            self.list[self.len] = action;
            self.len += 1;
        }
    }

    /// The actions, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Action] {
        &self.list[..self.len]
    }

    /// The actions, in order.
    pub fn iter(&self) -> std::iter::Copied<std::slice::Iter<'_, Action>> {
        self.as_slice().iter().copied()
    }

    /// Is there nothing to do?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a> IntoIterator for &'a Actions {
    type Item = Action;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, Action>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
