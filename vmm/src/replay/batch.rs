//! One batch of the log and its entries.
//!
//! A batch is one rkyv archive and travels as one frame. Positions and times are deltas to the batch's
//! base, so that an entry takes 20 bytes; payloads lie in one blob behind the entries and are read in
//! place.

use rkyv::{Archive, Deserialize, Serialize};

pub use super::entry::{ArchivedEntry, DISK_FAILED, Entry};

/// What the archive layout is, and how digests in it are computed; goes into the handshake. Change it whenever a type below
/// changes, such a computation, or what a guest finds in the machine.
pub const SCHEMA: &str = "batch-8 {base:u64 horizon:u64 time:u64 digest:u64 entries:[time{at,ns} \
    time-long{at,lo,hi} packet{at,nic,start,len}(virtio-net-hdr,frame) disk{at,tag,start,len,tag_high,disk} serial{at,start,len} \
    console{at,start,len} stop{at,start,len,captured} shadow{at}] blob:[u8] captured:[u8]} stop-image-4 vcpu-image-2 \
    captured-digest-2";

/// A run of the log.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Point that the entries' `at` count from: the horizon of the batch before.
    pub base: u64,
    /// Every input up to and including this point is in the log with this batch. A backup may emulate
    /// the exit of this point, but not enter the guest behind it. Inputs of the point behind it may be in
    /// the batch too: the recorder idles there, and more may follow. So may parts of a forced stop there.
    pub horizon: u64,
    /// Virtual time in nanoseconds before the first entry.
    pub time: u64,
    /// The recorder's digest at the horizon.
    pub digest: u64,
    /// The inputs, in the order in which they took effect.
    pub entries: Vec<Entry>,
    /// Their payloads.
    pub blob: Vec<u8>,
    /// Values of captured instructions up to the horizon, in order, as `tandem_kmod_brain::codec` packs them.
    /// The n-th that the guest executes gets the n-th: they need no positions.
    pub captured: Vec<u8>,
}

/// Kinds of log traffic, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Time readings.
    Time,
    /// Network packets.
    Packet,
    /// Disk completions.
    Disk,
    /// Serial and console input.
    Typed,
    /// Forced stops.
    ForcedStop,
    /// Values of captured instructions.
    Captured,
    /// Drops of KVM's shadow page tables.
    Shadow,
    /// Batches and frames around the entries.
    Framing,
}

impl Kind {
    /// All kinds, in the order of [`Kind::index`].
    pub const ALL: [Self; 8] = [
        Self::Time,
        Self::Packet,
        Self::Disk,
        Self::Typed,
        Self::ForcedStop,
        Self::Captured,
        Self::Shadow,
        Self::Framing,
    ];

    /// Position in [`Kind::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Packet => "packet",
            Self::Disk => "disk",
            Self::Typed => "typed",
            Self::ForcedStop => "forced-stop",
            Self::Captured => "captured",
            Self::Shadow => "shadow",
            Self::Framing => "framing",
        }
    }
}

/// Bytes of a batch without entries.
pub const EMPTY_BATCH_LEN: usize = size_of::<ArchivedBatch>();

/// Counts of the log's traffic by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Entries by [`Kind::index`].
    pub count: [u64; Kind::ALL.len()],
    /// Bytes by [`Kind::index`].
    pub bytes: [u64; Kind::ALL.len()],
}

impl Traffic {
    /// Counts one entry of `bytes` in all.
    pub const fn add(&mut self, kind: Kind, bytes: usize) {
        self.count[kind.index()] += 1;
        self.bytes[kind.index()] += bytes as u64;
    }

    /// All bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_twenty_bytes_and_a_batch_less_than_sixty() {
        assert_eq!(Entry::ARCHIVED_LEN, 20);
        assert_eq!(EMPTY_BATCH_LEN, 56);
    }
}
