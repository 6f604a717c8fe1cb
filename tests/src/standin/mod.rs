//! A pair without a VM: two processes that take over from each other as a protected pair does, in front
//! of one redis-server that plays the guest.
//!
//! The server lives in a *room*: a namespace with the guest's address and card. Whichever side is
//! entitled to carries frames between its tap and the room; so connections survive a take-over as those
//! of a real pair do. Heartbeats, leases and the arbiter are real. What is not: nothing is logged or
//! replayed.

mod carrier;
mod room;
mod side;

use std::str::FromStr;

pub use room::Room;
pub use side::main;

/// What a stand-in does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdeed {
    /// The side that takes over has forgotten everything.
    Forget,
    /// The primary sends without looking whether it still may.
    Zombie,
    /// The loser runs on.
    Stubborn,
    /// The backup says that it diverged, and ends.
    Diverge,
}

impl Misdeed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Forget, Self::Zombie, Self::Stubborn, Self::Diverge];

    /// Its name in the environment.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forget => "forget",
            Self::Zombie => "zombie",
            Self::Stubborn => "stubborn",
            Self::Diverge => "diverge",
        }
    }
}

impl FromStr for Misdeed {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|misdeed| misdeed.name() == name)
            .ok_or_else(|| format!("no misdeed is called {name:?}"))
    }
}

/// The room's namespace, as a path.
const ROOM: &str = "TANDEM_STANDIN_ROOM";
/// The misdeed.
const MISDEED: &str = "TANDEM_STANDIN_MISDEED";
