//! virtio 1.x over MMIO (virtio 1.3, section 4.2): one transport, four devices.
