//! The virtio devices, driven as a guest drives them: through registers and rings in guest memory.

mod blk;
mod console;
mod corruption;
mod driver;
mod net;
mod rng;
mod transport;
