//! Devices on the port bus. Each is one file, computes from [`VirtualTime`] alone, keeps its volatile
//! state in one `State` struct that derives `Clone, PartialEq, Eq, Hash` (so that two machines can be
//! compared and a digest taken), and is called by the board:
//!
//! - `read(&mut self, now, port_offset, data: &mut [u8])` / `write(&mut self, now, port_offset, data: &[u8])`
//!   for an access of 1, 2 or 4 bytes; what a real chip leaves undefined reads as ones;
//! - `advance(&mut self, now)` when virtual time moved on;
//! - `deadline(&self) -> Option<VirtualTime>`: when the device next wants `advance` for its interrupt;
//! - `interrupt(&self) -> bool`: the level of its interrupt line.

use super::time::VirtualTime;

/// A device that answers a range of I/O ports.
pub trait PortDevice {
    /// The guest reads `data.len()` bytes (1, 2 or 4) at `offset` from the device's first port.
    fn read(&mut self, now: VirtualTime, offset: u16, data: &mut [u8]);
    /// The guest writes `data` (1, 2 or 4 bytes) at `offset` from the device's first port.
    fn write(&mut self, now: VirtualTime, offset: u16, data: &[u8]);
}
