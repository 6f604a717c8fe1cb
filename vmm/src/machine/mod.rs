//! The deterministic machine.
//!
//! Nothing in this ring reads a clock, draws a random number, starts a thread, or opens a socket or a
//! file. What the machine did not compute itself arrives as an `Input`; what leaves it goes to an `Outputs`
//! sink. Two machines built from the same configuration and given the same inputs at the same positions are
//! equal, byte for byte.

/// Devices on the port bus: interrupt controller, timers, clock, serial line, reset.
pub mod devices;

/// Which device answers which address.
pub mod board;

/// Instructions that the kernel module captures.
pub mod captured;

/// Puts a kernel into guest memory and a vCPU at its entry.
pub mod boot;

/// The virtual CPU.
pub mod cpu;

/// KVM's log of the pages that the guest has written.
mod dirty;

/// What comes into the machine from outside.
pub mod input;

/// Guest memory on a memfd: layout, slots for KVM, pages.
pub mod memory;

/// What leaves the machine.
pub mod output;

/// Which device answers which I/O port.
mod ports;

/// Exits that the guest is spared.
pub mod sparing;

/// Time as the guest sees it.
pub mod time;

/// The machine as a whole.
pub mod vm;

/// virtio over MMIO: transport and devices.
pub mod virtio;
