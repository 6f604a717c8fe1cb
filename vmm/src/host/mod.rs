//! The effects: everything that touches the host.

/// What this host can run, found out by trying.
pub mod check;
/// The `tandem` command.
pub mod cli;
/// The config file of a VM.
pub mod config;
/// The control socket: status and failover.
pub mod control;
/// The wish to stop.
pub mod shutdown;
/// Tap devices.
pub mod tap;
