//! When an input takes effect.

use std::fmt;

/// The clock by which a position is found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clock {
    /// The ordinal of deterministic exits: the input takes effect when that exit has happened and has
    /// not been emulated yet. Works on every KVM.
    Exit,
    /// A forced stop: the point is defined by shipped registers and pages.
    ForcedStop,
}

/// A place in a machine's run that another machine can find again.
///
/// Points are counted from 1: each deterministic exit is one, and so are the end of an idle wait and a
/// forced stop. Ordered by point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Ordinal of the point.
    pub point: u64,
    /// What makes it findable.
    pub clock: Clock,
}

impl Position {
    /// The point of a deterministic exit.
    #[must_use]
    pub const fn exit(point: u64) -> Self {
        Self { point, clock: Clock::Exit }
    }

    /// The point of a forced stop.
    #[must_use]
    pub const fn forced_stop(point: u64) -> Self {
        Self { point, clock: Clock::ForcedStop }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.clock {
            Clock::Exit => write!(f, "exit {}", self.point),
            Clock::ForcedStop => write!(f, "forced stop {}", self.point),
        }
    }
}
