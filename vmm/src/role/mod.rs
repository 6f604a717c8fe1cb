//! The protocol of a protected pair, without I/O.

pub mod action;
pub mod arbitrating;
pub mod backup;
pub mod claim;
pub mod event;
pub mod gate;
pub mod lease;
pub mod moment;
pub mod primary;
pub mod side;
pub mod silence;
pub mod sim;
pub mod throttle;
pub mod timing;

pub use action::Action;
pub use event::Event;
pub use moment::Moment;
pub use side::Side;
pub use timing::Timing;

use action::Suspicion;
use event::Divergence;

/// What a role wants its side to turn into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Stay,
    Pair { generation: u64, start: bool },
    Follow { generation: u64 },
    Arbitrate(Suspicion),
    Win,
    Lose(u64),
    Refuse { generation: u64, claimed: u64 },
    Diverge(Divergence),
    Leave,
    End,
}
