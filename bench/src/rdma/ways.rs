//! The ways to carry the log that are compared.

use serde::Serialize as Json;
use std::fmt;
use std::time::Duration;
use tandem_logchan::channel::Link;
use tandem_logchan::transport::rdma::{Completion, RdmaConfig};
use tandem_logchan::transport::tcp::TcpConfig;

use super::bed::PATIENCE;

/// Of `completion = "adaptive"`: longer than a round trip in software emulation.
const SPIN: Duration = Duration::from_millis(1);

/// What brings the ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Json)]
#[serde(rename_all = "lowercase")]
pub(super) enum Ack {
    /// The backup, over TCP.
    Tcp,
    /// The backup, over RDMA: `ack = "read"`.
    Read,
    /// The adapter: `ack = "placed"`.
    Placed,
}

/// `completion`: how both ends wait for what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Json)]
#[serde(rename_all = "lowercase")]
pub(super) enum Waits {
    /// Asleep.
    Events,
    /// Looking, and asleep after a millisecond.
    Adaptive,
    /// Looking.
    Busy,
}

impl Waits {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Events, Self::Adaptive, Self::Busy];
}

/// One way: what the user can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Json)]
pub(super) struct Way {
    pub(super) ack: Ack,
    pub(super) completion: Waits,
}

impl Way {
    /// All of them, TCP first.
    pub(super) fn all() -> Vec<Self> {
        [Ack::Tcp, Ack::Read, Ack::Placed]
            .into_iter()
            .flat_map(|ack| Waits::ALL.map(|completion| Self { ack, completion }))
            .collect()
    }

    /// As the channel wants it told.
    pub(super) fn link(self) -> Link {
        if self.ack == Ack::Tcp {
            let spin = match self.completion {
                Waits::Events => Duration::ZERO,
                Waits::Adaptive => SPIN,
                Waits::Busy => Duration::MAX,
            };
            return Link::Tcp(TcpConfig { spin, ..TcpConfig::default() });
        }
        let completion = match self.completion {
            Waits::Events => Completion::Events,
            Waits::Adaptive => Completion::Adaptive(SPIN),
            Waits::Busy => Completion::Busy,
        };
        let placed = self.ack == Ack::Placed;
        Link::Rdma(RdmaConfig { completion, placed, patience: PATIENCE, ..RdmaConfig::default() })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carrier = match self.ack {
            Ack::Tcp => "TCP",
            Ack::Read => "RDMA, ack = \"read\"",
            Ack::Placed => "RDMA, ack = \"placed\"",
        };
        let waits = match self.completion {
            Waits::Events => "events",
            Waits::Adaptive => "adaptive",
            Waits::Busy => "busy",
        };
        write!(f, "{carrier}, {waits}")
    }
}
