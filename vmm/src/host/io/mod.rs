//! The host's side of the machine's devices.

/// Disk requests, carried out in order on a thread of their own.
pub mod disk;

/// Packets and typed bytes, from the host to the vCPU thread.
pub mod feed;

/// The feeding thread.
pub mod pump;

/// The serial line's and the console's output.
pub mod terminal;
