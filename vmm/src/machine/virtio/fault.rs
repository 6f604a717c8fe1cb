//! What a guest can do wrong with a queue (virtio 1.3, sections 2.6 and 2.7, "driver requirements").

use super::chain::Segment;

/// The three parts of a split virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The descriptor table.
    DescriptorTable,
    /// The available ring, written by the driver.
    AvailableRing,
    /// The used ring, written by the device.
    UsedRing,
}

/// What a guest did wrong with a queue. It leads to DEVICE_NEEDS_RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum QueueError {
    /// The queue size is zero, no power of two, or more than the device offers.
    #[error("queue size {0} is not a power of two within what the device offers")]
    Size(u32),
    /// A part of the queue is not aligned as section 2.7 demands, or is at address zero.
    #[error("{part:?} at {address:#x} is misaligned")]
    Misaligned {
        /// Which part.
        part: Part,
        /// Where the driver put it.
        address: u64,
    },
    /// A part of the queue is not in guest memory.
    #[error("{part:?} at {address:#x} is outside memory")]
    RingOutsideRam {
        /// Which part.
        part: Part,
        /// Where the driver put it.
        address: u64,
    },
    /// The available index is further ahead than the queue is long.
    #[error("available index {index} is more than the queue size ahead of {next}")]
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// The entry that the device would take next.
        next: u16,
    },
    /// A descriptor index is beyond its table.
    #[error("descriptor {index} is beyond the table of {table_len}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        table_len: u32,
    },
    /// The chain has more buffers than the queue has entries: a loop, or a driver's mistake.
    #[error("chain at {head} is longer than the queue, or loops")]
    ChainTooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The chain's buffers have 4 GiB or more in all.
    #[error("chain at {head} has 4 GiB of buffers or more")]
    ChainTooLarge {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer of no bytes.
    #[error("chain at {head} has a buffer of length zero")]
    ZeroLength {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A buffer is not wholly in guest memory.
    #[error("buffer of {len} bytes at {address:#x} is outside memory")]
    BufferOutsideRam {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A buffer for the device to read comes after one for it to write.
    #[error("chain at {head} has a readable buffer after a writable one")]
    ReadableAfterWritable {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect table where none may be: not negotiated, nested, or with a successor.
    #[error("chain at {head} has an indirect table where none may be")]
    IndirectNotAllowed {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect table that is empty, no multiple of 16 bytes long, or outside memory.
    #[error("chain at {head} has a malformed indirect table")]
    IndirectTable {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The chain is too short for what the device must find or put there.
    #[error("chain at {head} is too short for a request")]
    ShortChain {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The chain is longer than any request to this device may be.
    #[error("chain at {head} is too long for a request")]
    OversizeChain {
        /// The chain's first descriptor.
        head: u16,
    },
    /// The ring could not be accessed. The checks above leave no way to get here.
    #[error("the ring is inaccessible")]
    Inaccessible,
}

impl QueueError {
    pub(super) fn outside_ram(segment: Segment) -> Self {
        Self::BufferOutsideRam { address: segment.address, len: segment.len }
    }
}
