//! The protocol of a protected pair, without I/O.
//!
//! Two hosts run one machine. This module decides who may let its outputs out, and when; it reads no clock,
//! opens no socket and starts no thread. The host gives each [`Event`] to [`Side::on`] together with the
//! time ([`Moment`]) and does the [`Action`]s that come back. The simulator ([`sim`]) and the model checker
//! (`tests/role_model.rs`) drive the same code.
//!
//! # Roles
//!
//! ```text
//!  Solo                                    no pair, no arbiter
//!
//!  start ──▶ Arbitrating(Opening) ─won─▶ Joining ─Joined──▶ Primary ──▶ Arbitrating(Contest) ─won─▶ Live
//!                  │ lost                                     ▲              │ lost                  │
//!                  ▼                                          │              ▼                       │
//!               Halted(Refused)                               │            Halted                    │
//!                                                             └────────── Joined (new backup) ───────┤
//!  start ──▶ Joining ─Welcomed─▶ Backup ──▶ Arbitrating(Takeover) ─won, drained, promise over─▶ Live ┘
//!                                   │              │ lost
//!                                   ▼              ▼
//!                                Diverged        Halted
//! ```
//!
//! # Generations and the arbiter
//!
//! The arbiter holds one test-and-set per generation; a claim of a generation below the latest one that is
//! claimed is lost. The primary owns generation *g* (it claimed it when it started, or when it last became
//! live) and takes in at most one backup in it. Whoever takes its peer for lost claims *g* + 1, and nothing
//! but that claim makes it live. A claim cannot be withdrawn: "unreachable" may hide one that took effect or
//! will, so whoever asked once asks until it knows ([`claim`]), with its outputs held. Hence in each
//! generation at most one side is live, whatever the clocks, the network and the failure detector do.
//!
//! - A primary that starts again after a failover finds its generation claimed and is refused.
//! - A backup counts as taken in from the moment that the primary handles [`Event::Joined`]; the primary
//!   sends the welcome only after that. A backup without a welcome never claims. So there is never a second
//!   backup that could claim the same generation.
//!
//! # The Output Rule and the lease
//!
//! An output leaves the primary only if the backup has acknowledged the batch with its marker ([`gate`]).
//! That makes every output reproducible. It does not stop a primary that was frozen (SIGSTOP, a stalled
//! host): when it goes on, its backup may be live, and yet the primary holds outputs that were acknowledged
//! before. So a second condition: the primary must hold a *lease*.
//!
//! - Each heartbeat of the primary carries its clock *t*. Heartbeats and acks of the backup echo the newest
//!   *t* that came. The lease is valid until *t* + L for the newest *t* echoed.
//! - The backup promises not to be live before its own clock shows *r* + S, where *r* is when it received
//!   the newest *t* that it may have echoed, and S the silence bound (`heartbeat × missed`).
//!
//! **Why no output leaves after the backup is live.** The message with *t* was received after it was sent.
//! From its sending, L passes on the primary's clock until the lease ends; from its receipt, at least S
//! passes on the backup's until it is live. The clocks' rates differ by at most 1 %, so with L × 1.01 < S
//! the lease has ended first, however long the echo was on its way, and whichever messages were lost,
//! repeated or late: an old echo only names an earlier *t*. What remains, [`Timing::slack`], is for the
//! host: from asking [`Side::releasable`] to the last byte leaving. L = S × (1 − margin). By default S is
//! 50 ms, the margin a tenth, L 45 ms and the slack 4.5 ms.
//!
//! The clocks' offsets do not matter: *t* is compared with the clock that made it, *r* likewise. The clocks
//! must go on while a process is stopped, so use `CLOCK_BOOTTIME`.
//!
//! **From the look to the system call.** A process that is stopped between asking the gate and the system call would let out late
//! what it had in hand. So the host makes the two one step, where the kernel can (`host/leased`): packets, and writes to disks
//! when their turn comes, however long they waited for it.
//!
//! **What the lease cannot do.** A system call that was made in time may take effect late: a disk write inside the kernel or the
//! array; and a host that stands still as a whole goes on in the middle of one. For a packet the harm is a duplicate, since it was
//! acknowledged and the backup has made it too. For a disk, only fencing there (a persistent reservation) stops it.
//!
//! **A broken channel, and early claims.** When the process of the primary is killed, its kernel closes the
//! channel within a millisecond, and a killed process outputs nothing. But a closed or reset channel does
//! not prove a death: a link or a middlebox can do that with the primary alive, holding a lease and
//! acknowledged outputs. These would be reproducible, yet they might leave after the backup is live. So the
//! news shortens detection and nothing else: the backup stops echoing, drains, and goes to the arbiter after
//! `early` heartbeats of silence (20 ms) rather than `missed`, or after S in any case; but it is live only
//! at *r* + S, like always. Since *r* is at most a heartbeat and a trip ago, the arbiter's time and the
//! draining run inside that wait, and from SIGKILL to live takes S plus little. The delay of `early` is
//! there for a primary that lives: it notices the same break, goes to the arbiter at once, and should win,
//! for then no client notices anything. For the same reason a primary's silence bound is L, not S: once its
//! lease has ended it has nothing to lose by asking.
//!
//! **Drain first, then ask.** The backup executes all that it received before it claims. A replay that
//! diverges on the way then never wins, and a backup with much to catch up leaves the primary time to win.
//!
//! **A primary that wins** runs on at once and needs no lease any more: its backup can never be live in this
//! or any later generation.
//!
//! # Deliberate hand-over
//!
//! Asked on either side (the backup passes the wish on in its heartbeats). The primary stops its guest,
//! waits until all log is acknowledged and all outputs have left, shuts its gate for good, and only then
//! says `HandedOver`. After that word the promise has no object, so the backup claims and goes live without
//! waiting. The primary halts when it hears that the backup has won; if it hears nothing for
//! `hand_over_patience`, or the backup falls silent, it claims itself: winning, its guest runs on; losing,
//! it halts. No state is lost: the guest stands still from the last acknowledged batch on. Never two live:
//! only a claim makes live.
//!
//! # Ending
//!
//! - **The guest switches off**: the primary ends when that entry is acknowledged and all outputs have left.
//!   The backup ends when it executes the entry; also in the middle of a takeover.
//! - **SIGTERM on the primary** is a hand-over. If that fails, it ends without a claim of its own: it would
//!   not run on if it won, and so the backup, if it lives, can still take over. On a live side without
//!   backup it ends the machine.
//! - **SIGTERM on the backup**: it says so once and is gone, for it will never claim. The primary, by that
//!   word or by silence, claims, wins and runs on alone. A backup whose claim is on its way waits for the
//!   verdict first.
//!
//! # Divergence
//!
//! A backup whose replay differs from the primary stops acknowledging and echoing, says so in its
//! heartbeats, and never claims. The primary takes it for lost.
//!
//! # What the host owes
//!
//! - One thread owns the [`Side`]. `now` is read freshly for each event and each [`Side::releasable`].
//! - It reads what the sockets hold before it gives [`Event::Tick`], so that a late tick does not take
//!   unread messages for silence.
//! - It carries actions out in order; after [`Action::Halt`] nothing leaves, after [`Action::CloseChannel`]
//!   or a `None` of [`Side::on_batch`] no batch is acknowledged or executed that was not before.
//! - Its token at the arbiter is new for each start of the process; asking again with the same token for a
//!   generation it has won says `Won`.
//! - It authenticates heartbeats: whoever can forge an echo can forge a lease.
//!
//! [`Action`]: crate::role::Action
//! [`Action::CloseChannel`]: crate::role::Action::CloseChannel
//! [`Action::Halt`]: crate::role::Action::Halt
//! [`Event`]: crate::role::Event
//! [`Event::Joined`]: crate::role::Event::Joined
//! [`Event::Tick`]: crate::role::Event::Tick
//! [`Moment`]: crate::role::Moment
//! [`Side`]: crate::role::Side
//! [`Side::on`]: crate::role::Side::on
//! [`Side::on_batch`]: crate::role::Side::on_batch
//! [`Side::releasable`]: crate::role::Side::releasable
//! [`Timing::slack`]: crate::role::Timing::slack
//! [`claim`]: crate::role::claim
//! [`gate`]: crate::role::gate
//! [`sim`]: crate::role::sim

pub mod action;
pub mod arbitrating;
pub mod backup;
pub mod claim;
pub mod event;
pub mod gate;
pub mod joining;
pub mod lease;
pub mod live;
pub mod moment;
pub mod primary;
pub mod side;
pub mod silence;
pub mod sim;
pub mod throttle;
pub mod timing;

pub use action::Action;
pub use event::Event;
pub use joining::Start;
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
