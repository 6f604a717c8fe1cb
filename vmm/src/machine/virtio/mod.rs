//! virtio 1.x over MMIO (virtio 1.3, section 4.2): one transport, four devices.
//!
//! A device answers from its registers, its queues in guest memory, and the inputs it is given; nothing else.
//! Its volatile state is one `State` struct, so that two machines can be compared and a digest taken.
//!
//! Whatever a guest writes into a queue, the outcome is one of two, the same on primary and backup: the request is
//! served, or the device sets DEVICE_NEEDS_RESET, says so by a configuration interrupt, and leaves its queues
//! alone until the driver resets it.

/// A disk.
pub mod blk;

/// A checked descriptor chain.
pub mod chain;

/// A console.
pub mod console;

/// The four kinds of device behind one transport.
pub mod device;

/// What a guest can do wrong with a queue.
pub mod fault;

/// The registers.
pub mod mmio;

/// A network device.
pub mod net;

/// A checked split virtqueue.
pub mod queue;

/// An entropy source.
pub mod rng;

pub use device::VirtioDevice;
pub use mmio::VirtioMmio;

use super::memory::MMIO_START;

/// Bytes of address space for each device.
pub const SLOT_SIZE: u64 = 0x1000;

/// The interrupt lines of the slots, in order: those of the 8259 pair that no legacy device of this machine uses.
/// Taken are 0 (timer), 1 (keyboard controller), 2 (cascade), 4 (serial), 8 (RTC), 13 (FPU); 7 and 15 are left
/// out because they also mean "spurious".
///
/// The line is high while InterruptStatus is not zero, so the 8259 must take it as level-triggered (ELCR):
/// an edge would be lost when a second cause comes up before the first is acknowledged.
pub const IRQS: [u8; 8] = [5, 9, 10, 11, 12, 3, 6, 14];

/// The most virtio devices in a machine.
pub const MAX_SLOTS: usize = IRQS.len();

/// Guest physical address of slot `slot`.
#[must_use]
pub const fn slot_address(slot: usize) -> u64 {
    MMIO_START + slot as u64 * SLOT_SIZE
}
