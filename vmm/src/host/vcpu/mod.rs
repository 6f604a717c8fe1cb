//! What a vCPU thread needs from the host: a clock, interruptions, inputs.

/// Host time as virtual time.
pub mod clock;

/// The numbers of a vCPU thread.
pub mod counters;

/// Inputs on their way to the vCPU thread.
pub mod inputs;

/// Interrupting the guest from time to time.
pub mod kick;
