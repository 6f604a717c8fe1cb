//! The virtio devices, driven as a guest drives them: through registers and rings in guest memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod any_guest;
mod blk;
mod console;
mod corruption;
mod driver;
mod net;
mod polling;
mod rng;
mod transport;
