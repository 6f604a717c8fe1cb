//! What comes into the machine from outside.
//!
//! An input takes effect at a position (see `replay::position`), on both sides the same. Payloads are
//! borrowed: on the primary from the host's buffers, on the backup straight from the log frame.

use super::time::VirtualTime;

/// One input. Everything non-deterministic that a guest can see is in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// The clock was read: virtual time is now this. Timers that are due fire.
    Time(VirtualTime),
    /// A packet arrived for a network device.
    Packet {
        /// Which virtio-net device, counted from zero in configuration order.
        nic: u8,
        /// What is left to the guest
        /// ([`HEADER_LEN`](super::virtio::net::offload::HEADER_LEN) bytes), and the frame, 14 to 65,550 bytes.
        packet: &'a [u8],
    },
    /// A disk request that the machine sent out has completed.
    DiskDone {
        /// Which virtio-blk device, counted from zero in configuration order.
        disk: u8,
        /// The request's tag, as in [`super::output::DiskRequest::tag`].
        tag: u64,
        /// How it ended.
        status: DiskStatus,
        /// For a successful read: exactly the bytes asked for. Empty otherwise.
        data: &'a [u8],
    },
    /// Bytes typed at the serial line.
    Serial(&'a [u8]),
    /// Bytes typed at the virtio console.
    Console(&'a [u8]),
    /// The host made KVM forget its shadow of the guest's page tables. What the guest touches next is a fault, at which
    /// KVM looks at the guest's tables and sets accessed bits: so both sides forget it. Nothing where the CPU
    /// translates by itself.
    ShadowDropped,
}

/// How a disk request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskStatus {
    /// All of it done.
    Ok,
    /// The host could not do it; the guest sees VIRTIO_BLK_S_IOERR.
    IoError,
}
