//! The effects: everything that touches the host.

/// The config file of a VM.
pub mod config;
