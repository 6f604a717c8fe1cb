//! A protected pair on this host: a primary or a backup.
//!
//! Two threads a side. The vCPU thread runs the machine and, on a primary, sends the log itself. The
//! side thread owns the protocol ([`crate::role::Side`]) and everything that waits: the other end of
//! the log channel, heartbeats, taps, the arbiter's answers, the operator.
//!
//! ```text
//! primary                                         backup
//! vCPU thread: exit → log → send ───────────────▶ side thread: receive → ack → ring
//!      │ outputs (gated ring)                          │
//! side thread: ack → lease → release              vCPU thread: follow the log
//! ```

/// Asking the arbiter, on a thread of its own.
mod claims;

/// The clock of the protocol and of all that is measured here.
mod clock;

/// Where an output's time goes.
mod delay;

/// How far the backup's execution is behind, in time.
mod lag;

/// Whether acks are worth waking up for.
mod attention;

/// Heartbeats by datagram.
mod beacon;

/// Packets that leave together, by one system call.
mod burst;

/// Packets that leave by themselves: their log is acknowledged when they are made.
mod passage;

/// Running the machine as the primary does, and as a backup that went live.
mod lead;

/// What carries the log.
mod link;

/// The log of a primary, and the outputs that depend on it.
mod log;
mod marks;

/// Outputs that wait for the log.
mod gated;

/// Setting up a side: sockets, handshake, threads.
mod setup;

/// The side thread.
mod side;

/// What the two threads of a side share.
mod shared;

/// Status for the control socket.
mod status;

/// The backup's vCPU thread.
mod follow;

#[cfg(test)]
mod no_alloc;

/// Packets that pass by the gate: by its rule, in order, and without an allocation.
#[cfg(test)]
mod disk_passage_tests;
#[cfg(test)]
mod passage_tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tandem_logchan::channel::OpenError;
use tandem_logchan::loss::Loss;
use thiserror::Error;

use crate::host::config::{ConfigError, KeyError};
use crate::host::control::ServeError;
use crate::host::guest::GuestError;
use crate::host::io::disk::DiskError;
use crate::host::tap::TapError;
use crate::machine::vm::MachineError;
use crate::replay::follower::FollowError;
use crate::replay::stop::StopError;
use crate::role::action::HaltReason;
use crate::role::timing::TimingError;

pub use setup::{backup, primary};

/// The generation of a machine that was never failed over.
pub(super) const FIRST_GENERATION: u64 = 1;

/// How a side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairEnded {
    /// The protocol ended it.
    Halted(HaltReason),
    /// The machine could not go on here; the other side takes over.
    Failed,
}

/// What can go wrong with a side.
#[derive(Debug, Error)]
pub enum PairError {
    /// The config is not for a pair.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The times in the config contradict each other.
    #[error("the times of [pair] cannot be used")]
    Timing(#[from] TimingError),
    /// /dev/kvm cannot be used.
    #[error("cannot open /dev/kvm; `tandem check` says what is missing")]
    Kvm(#[source] kvm_ioctls::Error),
    /// The guest cannot be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A forced stop failed.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// What happened cannot be said in the log.
    #[error("a batch cannot be logged")]
    Batch(#[source] tandem_logchan::codec::EncodeError),
    /// The log could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError<std::convert::Infallible>),
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The control socket cannot be served.
    #[error(transparent)]
    Control(#[from] ServeError),
    /// The arbiter cannot be opened.
    #[error("cannot use the arbiter {}", path.display())]
    Arbiter {
        /// Where it is.
        path: PathBuf,
        /// What it said.
        #[source]
        source: tandem_arbiter::Error,
    },
    /// The arbiter belongs to another VM.
    #[error(
        "the arbiter {} belongs to VM id {found}, this one is {expected}; each VM needs its own: name another path and \
         make it with `tandem arbiter init`",
        path.display()
    )]
    OtherVm {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        found: tandem_arbiter::VmId,
        /// Who this is.
        expected: tandem_arbiter::VmId,
    },
    /// The peer was refused, or refused this side, or the connection cannot be used.
    #[error("no log channel with {peer}")]
    Channel {
        /// Who it was.
        peer: SocketAddr,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The log channel was lost while the log began.
    #[error(transparent)]
    Loss(#[from] Loss),
    /// An address of `[pair]` cannot be taken.
    #[error("cannot use {address}, which is [pair] {key}{}", address_hint(source))]
    Address {
        /// The address and port.
        address: SocketAddr,
        /// Which key of the config names it.
        key: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel has no thread, timer, socket or descriptor left.
    #[error("cannot {doing}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The operator ended it before the peer came.
    #[error("stopped before the peer came")]
    Cancelled,
}

/// What is most likely wrong with an address that cannot be taken.
fn address_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => ": it is not an address of this host",
        io::ErrorKind::AddrInUse => ": another process has it; does a side run here already?",
        io::ErrorKind::PermissionDenied => ": ports below 1024 need more rights",
        _ => "",
    }
}

/// An error of the host, by what was tried.
fn host(doing: &'static str) -> impl Fn(io::Error) -> PairError {
    move |source| PairError::Host { doing, source }
}
