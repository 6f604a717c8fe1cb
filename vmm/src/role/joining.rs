//! Before the pair: how a side starts, and how it waits for its peer.

use super::Next;
use super::event::Event;

/// How a primary starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// The generation that it opens: the first of a new machine is 1.
    pub generation: u64,
    /// The latest generation that the arbiter said was claimed, if it could be asked.
    pub claimed: Option<u64>,
    /// Start the guest without waiting for a backup.
    pub alone: bool,
}

/// A side that waits for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Joining {
    /// Owns its generation, and waits for a backup before it starts the guest.
    Primary {
        /// Its generation.
        generation: u64,
    },
    /// Waits for a primary's welcome.
    Backup {
        /// The latest generation that the arbiter said was claimed, if it could be asked.
        claimed: Option<u64>,
    },
}

impl Joining {
    pub(super) const fn on(self, event: Event) -> Next {
        match (self, event) {
            (Self::Primary { generation }, Event::Joined) => Next::Pair { generation, start: true },
            (Self::Backup { claimed: Some(claimed) }, Event::Welcomed { generation })
                if claimed > generation =>
            {
                Next::Refuse { generation, claimed }
            }
            (Self::Backup { .. }, Event::Welcomed { generation }) => Next::Follow { generation },
            (_, Event::Leave) => Next::Leave,
            _ => Next::Stay,
        }
    }
}
