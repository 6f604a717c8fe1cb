//! What some run must reach, for a check to mean something.

use tandem_vmm::role::action::HaltReason;
use tandem_vmm::role::event::Standing;
use tandem_vmm::role::side::{self, Side, State as Role};

use super::model::Bounds;
use super::world::{BACKUP, PRIMARY, World};

pub(crate) type Reached = (&'static str, fn(&Bounds, &World) -> bool);

pub(crate) const RUNS_ALONE: Reached =
    ("the primary runs on alone", |_, world| world.state(PRIMARY) == Some(Role::Live));
pub(crate) const TAKES_OVER: Reached =
    ("the backup takes over", |_, world| world.state(BACKUP) == Some(Role::Live));
pub(crate) const LOSER_HALTS: Reached =
    ("the backup takes over from a living primary, which halts", |_, world| {
        [world.state(PRIMARY), world.state(BACKUP)] == [Some(Role::Halted), Some(Role::Live)]
    });
pub(crate) const BACKUP_HALTS: Reached = ("the primary runs on and the backup halts", |_, world| {
    [world.state(PRIMARY), world.state(BACKUP)] == [Some(Role::Live), Some(Role::Halted)]
});
pub(crate) const RACE: Reached = ("both are at the arbiter", |_, world| {
    world.claims.iter().all(|claims| !claims.is_empty()) && world.winners.len() == 1
});
pub(crate) const FROZEN: Reached = ("the backup is live and the primary does not know", |_, world| {
    [world.state(PRIMARY), world.state(BACKUP)] == [Some(Role::Primary), Some(Role::Live)]
});
pub(crate) const HELD_LEASE: Reached =
    ("the backup has won and waits while the primary may hold a lease", |_, world| {
        world.winners.len() == 2
            && world.state(BACKUP) == Some(Role::Arbitrating)
            && world.datagrams[PRIMARY].iter().flatten().any(|heartbeat| heartbeat.standing == Standing::Won)
    });
pub(crate) const DELIVERED: Reached = ("an output leaves", |_, world| world.left > 0);
pub(crate) const READ_LATE: Reached =
    ("the backup takes over, an output having left before it had read the log of it", |_, world| {
        world.left > 0
            && world.state(BACKUP) == Some(Role::Arbitrating)
            && world.placed() > 0
            && world.sides[BACKUP]
                .as_ref()
                .and_then(Side::progress)
                .is_some_and(|progress| progress.received == 0)
    });
pub(crate) const HANDED_OVER: Reached = ("the primary hands over", |_, world| {
    matches!(
        world.sides[PRIMARY].as_ref().map(Side::role),
        Some(side::Role::Halted(HaltReason::HandedOver { .. }))
    )
});
pub(crate) const TAKEN_BACK: Reached = ("a hand-over fails and the primary runs on", |bounds, world| {
    world.used.hand_overs == bounds.hand_overs && world.state(PRIMARY) == Some(Role::Live)
});
pub(crate) const DIVERGED: Reached = ("a diverged backup stays so while the primary runs on", |_, world| {
    [world.state(PRIMARY), world.state(BACKUP)] == [Some(Role::Live), Some(Role::Diverged)]
});
pub(crate) const LEFT: Reached = ("a side that is to leave hands over and halts", |_, world| {
    world.used.leaves > 0
        && world.state(PRIMARY) == Some(Role::Halted)
        && world.state(BACKUP) == Some(Role::Live)
});
pub(crate) const REFUSED: Reached = ("a primary that starts again is refused", |_, world| world.refused);
pub(crate) const STALE_REFUSED: Reached =
    ("a primary that starts again after a failover is refused", |_, world| {
        world.refused && world.state(BACKUP) == Some(Role::Live)
    });
