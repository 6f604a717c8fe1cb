//! Tandem: fault tolerance for KVM virtual machines.
//!
//! Four rings, each importing only inwards (see `docs/architecture.md`):
//! [`machine`] ← [`replay`] ← [`role`] ← [`host`].

/// The deterministic machine: guest memory, vCPU, devices. Inputs in, outputs out.
pub mod machine;

/// Record and replay: positions, the log vocabulary, divergence digests.
pub mod replay;

/// The protocol of a protected pair, without I/O: roles, output rule, leases, go-live.
pub mod role;

/// The effects: run loops, taps, disks, timers, sockets, the command line.
pub mod host;
