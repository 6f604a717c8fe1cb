//! The effects: everything that touches the host.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What this host can run, found out by trying.
pub mod check;
/// The `tandem` command.
pub mod cli;
/// The kernel's clocks, as numbers.
mod clock;
/// The config file of a VM.
pub mod config;
/// The control socket: status and failover.
pub mod control;
/// The guest that is linked into `tandem`.
pub mod embedded;
/// What a config boots.
pub mod guest;
/// The host's side of the machine's devices.
pub mod io;
/// What leaves the host only while a lease holds.
pub mod leased;
/// How KVM translates guest addresses here.
pub mod paging;
/// A protected pair: primary and backup.
pub mod pair;
/// Running ahead of ordinary threads.
pub mod priority;
/// A machine without a peer.
pub mod run;
/// The wish to stop.
pub mod shutdown;
/// Tap devices.
pub mod tap;
/// What a vCPU thread needs from the host.
pub mod vcpu;

/// The data under a lock whose holder panicked is plain numbers: still fit for use.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
