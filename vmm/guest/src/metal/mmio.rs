//! Memory-mapped device registers.

use tandem_guest::virtio::Registers;

/// The registers of a virtio-mmio device.
pub(crate) struct Mmio {
    base: usize,
}

impl Mmio {
    /// # Safety
    /// `base` is the address of a virtio-mmio device's 4 KiB of registers, mapped one to one, and nobody
    /// else writes to them.
    pub(crate) unsafe fn new(base: u64) -> Self {
        Self { base: base as usize }
    }
}

impl Registers for Mmio {
    fn read(&self, offset: usize) -> u32 {
        // SAFETY: by the promise made to `new`; a read has no effect on memory.
        unsafe { ((self.base + offset) as *const u32).read_volatile() }
    }

    fn read_byte(&self, offset: usize) -> u8 {
        // SAFETY: as for `read`.
        unsafe { ((self.base + offset) as *const u8).read_volatile() }
    }

    fn write(&mut self, offset: usize, value: u32) {
        // SAFETY: by the promise made to `new`; the driver gives the device only memory that is its own.
        unsafe { ((self.base + offset) as *mut u32).write_volatile(value) }
    }
}
