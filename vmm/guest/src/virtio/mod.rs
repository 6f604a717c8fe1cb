//! Split virtqueues and the network device, driver side (virtio 1.2, sections 2.7, 4.2 and 5.1).

/// The network device.
pub mod net;

/// Split virtqueues.
pub mod queue;

/// Register offsets and values of virtio over MMIO (section 4.2.2).
pub mod registers {
    /// Always [`MAGIC_VALUE`].
    pub const MAGIC: usize = 0x000;
    /// Always [`VERSION_VALUE`].
    pub const VERSION: usize = 0x004;
    /// What kind of device it is.
    pub const DEVICE_ID: usize = 0x008;
    /// What the device offers: 32 bits of it.
    pub const DEVICE_FEATURES: usize = 0x010;
    /// Which 32 bits.
    pub const DEVICE_FEATURES_SELECT: usize = 0x014;
    /// What the driver takes: 32 bits of it.
    pub const DRIVER_FEATURES: usize = 0x020;
    /// Which 32 bits.
    pub const DRIVER_FEATURES_SELECT: usize = 0x024;
    /// Which queue the queue registers speak of.
    pub const QUEUE_SELECT: usize = 0x030;
    /// How large the queue may be.
    pub const QUEUE_SIZE_MAX: usize = 0x034;
    /// How large it is.
    pub const QUEUE_SIZE: usize = 0x038;
    /// One: the queue is in use.
    pub const QUEUE_READY: usize = 0x044;
    /// Written with a queue's number: there is something new in it.
    pub const QUEUE_NOTIFY: usize = 0x050;
    /// Written with the reasons of an interrupt that was seen.
    pub const INTERRUPT_ACK: usize = 0x064;
    /// How far the driver has come; zero resets.
    pub const STATUS: usize = 0x070;
    /// Address of the descriptors, low half; the high half follows.
    pub const QUEUE_DESCRIPTORS: usize = 0x080;
    /// Address of the available ring.
    pub const QUEUE_DRIVER: usize = 0x090;
    /// Address of the used ring.
    pub const QUEUE_DEVICE: usize = 0x0a0;
    /// The device's own configuration.
    pub const CONFIG: usize = 0x100;

    /// "virt"
    pub const MAGIC_VALUE: u32 = 0x7472_6976;
    /// Not the legacy interface.
    pub const VERSION_VALUE: u32 = 2;
    /// A queue has been used.
    pub const INTERRUPT_USED: u32 = 1;

    /// Status: the driver knows the device is there.
    pub const ACKNOWLEDGE: u32 = 1;
    /// Status: the driver can drive it.
    pub const DRIVER: u32 = 2;
    /// Status: the driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Status: the features are settled.
    pub const FEATURES_OK: u32 = 8;
}

/// The registers of one device.
pub trait Registers {
    /// Reads 32 bits at a byte offset.
    fn read(&self, offset: usize) -> u32;
    /// Reads 8 bits at a byte offset.
    fn read_byte(&self, offset: usize) -> u8;
    /// Writes 32 bits at a byte offset.
    fn write(&mut self, offset: usize, value: u32);
}

#[cfg(test)]
mod tests;
