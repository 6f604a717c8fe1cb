//! A machine without a peer: run, record, replay.

/// The log file of a recording.
pub mod logfile;

/// Where outputs go when nobody has to wait for them.
pub mod open_outputs;

/// Running again from a log file.
pub mod replay;

/// Running alone, with or without a log file.
pub mod solo;

/// What a machine without a peer says of itself.
mod status;
