//! Builds batches as a machine runs.
//!
//! Holds one batch whose vectors are reused: in the steady state nothing is allocated.

use tandem_kmod_brain::codec::Codec;
use tandem_kmod_brain::trap::Trap;

use crate::machine::cpu::capture::QUANTUM;
use crate::machine::input::{DiskStatus, Input};
use crate::machine::time::VirtualTime;

use super::batch::{Batch, DISK_FAILED, EMPTY_BATCH_LEN, Entry, Kind, Traffic};

/// Bytes of payload after which a batch must be sealed: well under a frame's limit.
pub const BLOB_LIMIT: usize = 1 << 20;

/// A batch in the making.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    batch: Batch,
    /// Virtual time after the last time entry.
    time: u64,
    /// First and last point of the batch's entries.
    points: Option<(u64, u64)>,
    /// Whether any entry of the batch came from outside the host.
    outside: bool,
    /// How captured values are packed.
    codec: Codec,
    traffic: Traffic,
}

impl BatchBuilder {
    /// A builder whose first batch begins at `base` and `time`, with the virtual TSC last read as `tsc`.
    #[must_use]
    pub fn new(base: u64, time: VirtualTime, tsc: u64) -> Self {
        let batch = Batch {
            base,
            horizon: base,
            time: time.as_nanos(),
            entries: Vec::with_capacity(1024),
            blob: Vec::with_capacity(BLOB_LIMIT / 4),
            ..Batch::default()
        };
        let codec = Codec::new(QUANTUM, tsc);
        let traffic = Traffic::default();
        Self { batch, time: time.as_nanos(), points: None, outside: false, codec, traffic }
    }

    /// Logs an input that took effect at `point`.
    pub fn input(&mut self, point: u64, input: &Input<'_>) {
        let at = self.at(point);
        let entry = match *input {
            Input::Time(time) => {
                let ns = time.as_nanos().saturating_sub(self.time);
                self.time += ns;
                match u32::try_from(ns) {
                    Ok(ns) => Entry::Time { at, ns },
                    Err(_) => Entry::TimeLong { at, lo: ns as u32, hi: (ns >> 32) as u32 },
                }
            }
            Input::Packet { nic, packet } => {
                let (start, len) = self.payload(packet);
                Entry::Packet { at, nic, start, len }
            }
            Input::DiskDone { disk, tag, status, data } => {
                let (start, len) = self.payload(data);
                let failed = if status == DiskStatus::Ok { 0 } else { DISK_FAILED };
                Entry::DiskDone {
                    at,
                    tag: tag as u32,
                    start,
                    len,
                    tag_high: (tag >> 32) as u16,
                    disk: disk | failed,
                }
            }
            Input::Serial(bytes) => {
                let (start, len) = self.payload(bytes);
                Entry::Serial { at, start, len }
            }
            Input::Console(bytes) => {
                let (start, len) = self.payload(bytes);
                Entry::Console { at, start, len }
            }
            Input::ShadowDropped => Entry::ShadowDropped { at },
        };
        self.push(point, entry);
    }

    /// Logs a forced stop, which is `point`, with its packed image, after `captured` instructions since the last
    /// exit.
    pub fn forced_stop(&mut self, point: u64, image: &[u8], captured: u64) {
        let at = self.at(point);
        let (start, len) = self.payload(image);
        let captured = u32::try_from(captured).unwrap_or(u32::MAX);
        self.push(point, Entry::ForcedStop { at, start, len, captured });
    }

    /// Logs the value of a captured instruction.
    pub fn captured(&mut self, trap: Trap, value: u64) {
        let encoded = self.codec.encode(trap, value);
        self.batch.captured.extend_from_slice(encoded.as_bytes());
        self.traffic.add(Kind::Captured, encoded.as_bytes().len());
    }

    fn push(&mut self, point: u64, entry: Entry) {
        let payload = match entry {
            Entry::Packet { len, .. }
            | Entry::DiskDone { len, .. }
            | Entry::Serial { len, .. }
            | Entry::Console { len, .. }
            | Entry::ForcedStop { len, .. } => len as usize,
            Entry::Time { .. } | Entry::TimeLong { .. } | Entry::ShadowDropped { .. } => 0,
        };
        self.traffic.add(entry.kind(), Entry::ARCHIVED_LEN + payload);
        self.batch.entries.push(entry);
        self.points = Some((self.points.map_or(point, |(first, _)| first), point));
        self.outside |= !matches!(entry.kind(), Kind::Time | Kind::Shadow);
    }

    fn at(&self, point: u64) -> u32 {
        // A batch is sealed long before four billion exits: `must_seal` asks for it.
        u32::try_from(point - self.batch.base).unwrap_or(u32::MAX)
    }

    fn payload(&mut self, bytes: &[u8]) -> (u32, u32) {
        let start = self.batch.blob.len();
        self.batch.blob.extend_from_slice(bytes);
        (start as u32, bytes.len() as u32)
    }

    /// Whether there is nothing to send: no entries, and the horizon has not moved to `point`.
    #[must_use]
    pub const fn is_empty_at(&self, point: u64) -> bool {
        self.batch.entries.is_empty() && self.batch.base == point
    }

    /// Whether there are entries to send.
    #[must_use]
    pub const fn has_entries(&self) -> bool {
        !self.batch.entries.is_empty()
    }

    /// Whether there is anything that the guest's path depends on: entries, or values of captured instructions.
    #[must_use]
    pub const fn decides(&self) -> bool {
        !self.batch.entries.is_empty() || !self.batch.captured.is_empty()
    }

    /// Whether there are entries that came from outside the host: anything but time and the shadow's drops.
    #[must_use]
    pub const fn has_outside_entries(&self) -> bool {
        self.outside
    }

    /// Whether all entries lie before `point`, at one point.
    #[must_use]
    pub const fn lies_before(&self, point: u64) -> bool {
        match self.points {
            None => true,
            Some((first, last)) => first == last && last < point,
        }
    }

    /// The point at which the last batch ended.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.batch.base
    }

    /// Whether the batch has grown so much that it has to be sealed at `point`.
    #[must_use]
    pub const fn must_seal(&self, point: u64) -> bool {
        self.batch.blob.len() + self.batch.captured.len() >= BLOB_LIMIT
            || self.batch.entries.len() >= 4096
            || point - self.batch.base >= 1 << 31
    }

    /// Closes the batch at `horizon`, all inputs up to which are logged, and gives it out for encoding.
    /// Call [`BatchBuilder::begin`] afterwards.
    pub fn seal(&mut self, horizon: u64, digest: u64) -> &Batch {
        self.batch.horizon = horizon;
        self.batch.digest = digest;
        self.traffic.add(Kind::Framing, EMPTY_BATCH_LEN);
        &self.batch
    }

    /// Starts the next batch behind the sealed one.
    pub fn begin(&mut self) {
        self.batch.base = self.batch.horizon;
        self.batch.time = self.time;
        self.batch.entries.clear();
        self.batch.blob.clear();
        self.points = None;
        self.outside = false;
        self.batch.captured.clear();
    }

    /// Traffic so far.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Counts bytes that a transport put around a batch.
    pub const fn add_framing(&mut self, bytes: usize) {
        self.traffic.bytes[Kind::Framing.index()] += bytes as u64;
    }
}
