//! One logged input, as it lies in a batch.

#![expect(missing_docs, reason = "rkyv's derive makes an enum of its own without documentation")]

use rkyv::{Archive, Deserialize, Serialize};

use super::batch::Kind;

/// Flag in the disk number of [`Entry::DiskDone`]: the request failed.
pub const DISK_FAILED: u8 = 0x80;

/// One logged input. `at` is the point minus the batch's base point. Small fields come first: they share
/// the archive's tag word.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Virtual time advanced by `ns` nanoseconds.
    Time {
        /// Point delta.
        at: u32,
        /// Nanoseconds since the last time entry.
        ns: u32,
    },
    /// Virtual time advanced by more than four seconds.
    TimeLong {
        /// Point delta.
        at: u32,
        /// Nanoseconds, low half.
        lo: u32,
        /// Nanoseconds, high half.
        hi: u32,
    },
    /// A network packet.
    Packet {
        /// Network device.
        nic: u8,
        /// Point delta.
        at: u32,
        /// Where it begins in the blob: its header, then the frame.
        start: u32,
        /// Its bytes.
        len: u32,
    },
    /// A disk request completed.
    DiskDone {
        /// Disk device; [`DISK_FAILED`] is added when the request failed.
        disk: u8,
        /// Bits 32 to 47 of the tag: a disk does not see 2^48 requests.
        tag_high: u16,
        /// Point delta.
        at: u32,
        /// Low 32 bits of the tag.
        tag: u32,
        /// Where the data read begins in the blob.
        start: u32,
        /// Its bytes; zero for writes.
        len: u32,
    },
    /// Bytes for the serial line.
    Serial {
        /// Point delta.
        at: u32,
        /// Where they begin in the blob.
        start: u32,
        /// How many.
        len: u32,
    },
    /// Bytes for the virtio console.
    Console {
        /// Point delta.
        at: u32,
        /// Where they begin in the blob.
        start: u32,
        /// How many.
        len: u32,
    },
    /// The guest was stopped between exits; the blob holds a packed stop image.
    ForcedStop {
        /// Point delta: the stop itself is this point.
        at: u32,
        /// Where the packed image begins in the blob.
        start: u32,
        /// Its bytes.
        len: u32,
        /// Captured instructions between the last exit and the stop: a follower does not execute them.
        captured: u32,
    },
    /// KVM's shadow of the guest's page tables was dropped.
    ShadowDropped {
        /// Point delta.
        at: u32,
    },
}

impl Entry {
    /// The kind for statistics.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Time { .. } | Self::TimeLong { .. } => Kind::Time,
            Self::Packet { .. } => Kind::Packet,
            Self::DiskDone { .. } => Kind::Disk,
            Self::Serial { .. } | Self::Console { .. } => Kind::Typed,
            Self::ForcedStop { .. } => Kind::ForcedStop,
            Self::ShadowDropped { .. } => Kind::Shadow,
        }
    }

    /// Bytes of an archived entry.
    pub const ARCHIVED_LEN: usize = size_of::<ArchivedEntry>();
}
