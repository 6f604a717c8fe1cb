//! Plays batches back, in place.
//!
//! A `Player` walks an archived `Batch` entry by entry. It never trusts it: positions must rise,
//! payloads must lie in the blob.

use thiserror::Error;

use crate::machine::input::{DiskStatus, Input};
use crate::machine::time::VirtualTime;

use super::batch::{ArchivedBatch, ArchivedEntry, DISK_FAILED, EMPTY_BATCH_LEN, Entry, Kind, Traffic};

/// A log that cannot be played: damaged, or not this machine's.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LogError {
    /// Batches do not follow each other.
    #[error("a batch begins at point {found}, {expected} expected: part of the log is missing")]
    Gap {
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// An entry's position lies outside its batch or before its predecessor's.
    #[error("entry {entry} of a batch lies at point {point}, outside {from}..={horizon}+1")]
    Order {
        /// Number of the entry in its batch.
        entry: usize,
        /// Its point.
        point: u64,
        /// The earliest point allowed.
        from: u64,
        /// The batch's horizon.
        horizon: u64,
    },
    /// A payload lies outside the blob.
    #[error("the payload of entry {entry} ({start}+{len}) lies outside the batch's {blob} bytes")]
    Payload {
        /// Number of the entry in its batch.
        entry: usize,
        /// Where it claims to begin.
        start: u32,
        /// Its claimed length.
        len: u32,
        /// Bytes there are.
        blob: usize,
    },
    /// The captured values cannot be unpacked.
    #[error("the captured values of a batch are damaged at byte {at}")]
    Captured {
        /// Byte offset.
        at: usize,
    },
    /// Virtual time would overflow.
    #[error("entry {entry} moves virtual time past its range")]
    Time {
        /// Number of the entry in its batch.
        entry: usize,
    },
}

/// What the log says happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An input.
    Input(Input<'a>),
    /// A forced stop; the stop is a point of its own.
    ForcedStop {
        /// Its packed image.
        image: &'a [u8],
        /// Captured instructions since the exit before.
        captured: u32,
    },
}

impl Event<'_> {
    /// The kind for statistics.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Input(Input::Time(_)) => Kind::Time,
            Self::Input(Input::Packet { .. }) => Kind::Packet,
            Self::Input(Input::DiskDone { .. }) => Kind::Disk,
            Self::Input(Input::Serial(_) | Input::Console(_)) => Kind::Typed,
            Self::Input(Input::ShadowDropped) => Kind::Shadow,
            Self::ForcedStop { .. } => Kind::ForcedStop,
        }
    }

    /// What it carries in the batch's blob.
    #[must_use]
    pub const fn payload(&self) -> &[u8] {
        match self {
            Self::Input(Input::Time(_) | Input::ShadowDropped) => &[],
            Self::Input(Input::Packet { packet: bytes, .. } | Input::DiskDone { data: bytes, .. })
            | Self::Input(Input::Serial(bytes) | Input::Console(bytes))
            | Self::ForcedStop { image: bytes, .. } => bytes,
        }
    }
}

/// Where a reader stands in one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Player {
    next: usize,
    /// Point of the last entry taken, or the base.
    point: u64,
    /// Virtual time in nanoseconds after the last time entry.
    time: u64,
    horizon: u64,
    traffic: Traffic,
}

impl Player {
    /// A player of a log that begins at `point` and `time`.
    #[must_use]
    pub const fn new(point: u64, time: VirtualTime) -> Self {
        Self {
            next: 0,
            point,
            time: time.as_nanos(),
            horizon: point,
            traffic: Traffic { count: [0; Kind::ALL.len()], bytes: [0; Kind::ALL.len()] },
        }
    }

    /// Turns to the next batch.
    ///
    /// # Errors
    /// When it does not follow the last one.
    pub fn begin(&mut self, batch: &ArchivedBatch) -> Result<(), LogError> {
        let found = batch.base.to_native();
        if found != self.horizon || batch.horizon.to_native() < found || batch.time.to_native() != self.time {
            return Err(LogError::Gap { expected: self.horizon, found });
        }
        self.next = 0;
        // The last batch may have had inputs of the point behind its horizon.
        self.point = self.point.max(found);
        self.horizon = batch.horizon.to_native();
        self.traffic.add(Kind::Framing, EMPTY_BATCH_LEN);
        Ok(())
    }

    /// Counts captured values that were unpacked from a batch.
    pub const fn count_captured(&mut self, values: u64, bytes: usize) {
        self.traffic.count[Kind::Captured.index()] += values;
        self.traffic.bytes[Kind::Captured.index()] += bytes as u64;
    }

    /// The point up to which all inputs are known.
    #[must_use]
    pub const fn horizon(&self) -> u64 {
        self.horizon
    }

    /// What was taken so far.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The next event and its point, without taking it; `None` at the end of the batch.
    ///
    /// # Errors
    /// When the entry is damaged.
    pub fn peek<'a>(&self, batch: &'a ArchivedBatch) -> Result<Option<(u64, Event<'a>)>, LogError> {
        let entry = self.next;
        let Some(archived) = batch.entries.get(entry) else { return Ok(None) };
        let payload = |start: u32, len: u32| {
            let blob: &'a [u8] = &batch.blob;
            blob.get(start as usize..start as usize + len as usize).ok_or(LogError::Payload {
                entry,
                start,
                len,
                blob: blob.len(),
            })
        };
        let advance = |ns: u64| {
            self.time
                .checked_add(ns)
                .map(|t| Event::Input(Input::Time(VirtualTime::from_nanos(t))))
                .ok_or(LogError::Time { entry })
        };
        let (at, event) = match *archived {
            ArchivedEntry::Time { at, ns } => (at, advance(u64::from(ns.to_native()))?),
            ArchivedEntry::TimeLong { at, lo, hi } => {
                (at, advance(u64::from(lo.to_native()) | u64::from(hi.to_native()) << 32)?)
            }
            ArchivedEntry::Packet { at, nic, start, len } => {
                (at, Event::Input(Input::Packet { nic, packet: payload(start.into(), len.into())? }))
            }
            ArchivedEntry::DiskDone { at, tag, start, len, tag_high, disk } => {
                let status = if disk & DISK_FAILED == 0 { DiskStatus::Ok } else { DiskStatus::IoError };
                let tag = u64::from(tag.to_native()) | u64::from(tag_high.to_native()) << 32;
                let data = payload(start.into(), len.into())?;
                (at, Event::Input(Input::DiskDone { disk: disk & !DISK_FAILED, tag, status, data }))
            }
            ArchivedEntry::Serial { at, start, len } => {
                (at, Event::Input(Input::Serial(payload(start.into(), len.into())?)))
            }
            ArchivedEntry::Console { at, start, len } => {
                (at, Event::Input(Input::Console(payload(start.into(), len.into())?)))
            }
            ArchivedEntry::ForcedStop { at, start, len, captured } => {
                let image = payload(start.into(), len.into())?;
                (at, Event::ForcedStop { image, captured: captured.to_native() })
            }
            ArchivedEntry::ShadowDropped { at } => (at, Event::Input(Input::ShadowDropped)),
        };
        let point = batch.base.to_native().saturating_add(at.to_native().into());
        // Inputs of the point behind the horizon may be there already: the recorder idles at it.
        if point < self.point || point.saturating_sub(1) > self.horizon {
            return Err(LogError::Order { entry, point, from: self.point, horizon: self.horizon });
        }
        Ok(Some((point, event)))
    }

    /// Takes the event that [`Player::peek`] showed.
    pub fn take(&mut self, point: u64, event: &Event<'_>) {
        self.next += 1;
        self.point = point;
        if let Event::Input(Input::Time(time)) = event {
            self.time = time.as_nanos();
        }
        self.traffic.add(event.kind(), Entry::ARCHIVED_LEN + event.payload().len());
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Batch;
    use super::super::builder::BatchBuilder;
    use super::*;
    use proptest::prelude::*;
    use rkyv::rancor::Error;

    #[derive(Clone, Debug)]
    enum Op {
        Time(u64),
        Packet(u8, Vec<u8>),
        Disk(u8, u64, bool, Vec<u8>),
        Serial(Vec<u8>),
        Shadow,
        Stop(Vec<u8>),
        Points(u64),
        Seal,
    }

    fn op() -> impl Strategy<Value = Op> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            prop_oneof![0u64..1000, 0u64..1 << 40].prop_map(Op::Time),
            (any::<u8>(), bytes.clone()).prop_map(|(n, b)| Op::Packet(n, b)),
            (0u8..128, 0u64..1 << 48, any::<bool>(), bytes.clone())
                .prop_map(|(d, t, o, b)| Op::Disk(d, t, o, b)),
            bytes.clone().prop_map(Op::Serial),
            Just(Op::Shadow),
            bytes.prop_map(Op::Stop),
            (0u64..5).prop_map(Op::Points),
            Just(Op::Seal),
        ]
    }

    fn archive(batch: &Batch) -> rkyv::util::AlignedVec {
        rkyv::to_bytes::<Error>(batch).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_logged_is_played_in_order_and_at_its_point(ops in proptest::collection::vec(op(), 0..60)) {
            let (mut point, mut time) = (7, 1000);
            let mut builder = BatchBuilder::new(point, VirtualTime::from_nanos(time), 0);
            let mut wanted: Vec<(u64, String)> = Vec::new();
            let mut batches = Vec::new();
            for op in &ops {
                let input = match op {
                    Op::Time(ns) => { time += ns; Some(Input::Time(VirtualTime::from_nanos(time))) }
                    Op::Packet(nic, frame) => Some(Input::Packet { nic: *nic, packet: frame }),
                    Op::Disk(disk, tag, ok, data) => Some(Input::DiskDone {
                        disk: *disk, tag: *tag, data,
                        status: if *ok { DiskStatus::Ok } else { DiskStatus::IoError },
                    }),
                    Op::Serial(b) => Some(Input::Serial(b)),
                    Op::Shadow => Some(Input::ShadowDropped),
                    Op::Stop(image) => {
                        point += 1;
                        builder.forced_stop(point, image, 3);
                        wanted.push((point, format!("{:?}", Event::ForcedStop { image, captured: 3 })));
                        None
                    }
                    Op::Points(n) => { point += n; None }
                    Op::Seal => { batches.push(archive(builder.seal(point, 0))); builder.begin(); None }
                };
                if let Some(input) = input {
                    builder.input(point, &input);
                    wanted.push((point, format!("{:?}", Event::Input(input))));
                }
            }
            batches.push(archive(builder.seal(point, 0)));
            let mut player = Player::new(7, VirtualTime::from_nanos(1000));
            let mut played = Vec::new();
            for bytes in &batches {
                let batch = rkyv::access::<ArchivedBatch, Error>(bytes).unwrap();
                player.begin(batch).unwrap();
                while let Some((point, event)) = player.peek(batch).unwrap() {
                    played.push((point, format!("{event:?}")));
                    player.take(point, &event);
                }
            }
            prop_assert_eq!(played, wanted);
            prop_assert_eq!(player.horizon(), point);
            prop_assert_eq!(player.traffic(), builder.traffic());
        }

        #[test]
        fn damaged_batches_are_refused_or_read_but_never_panic(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut builder = BatchBuilder::new(0, VirtualTime::ZERO, 0);
            builder.input(1, &Input::Packet { nic: 0, packet: &[1; 60] });
            builder.input(2, &Input::Time(VirtualTime::from_nanos(5)));
            builder.input(2, &Input::Serial(b"x"));
            let mut bytes = archive(builder.seal(3, 9));
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(batch) = rkyv::access::<ArchivedBatch, Error>(&bytes) {
                let mut player = Player::new(0, VirtualTime::ZERO);
                if player.begin(batch).is_ok() {
                    while let Ok(Some((point, event))) = player.peek(batch) {
                        player.take(point, &event);
                    }
                }
            }
        }
    }

    #[test]
    fn points_at_the_end_of_their_range_are_no_overflow() {
        let entries = vec![Entry::Serial { at: 5, start: 0, len: 0 }];
        for (base, horizon) in [(0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX - 1, u64::MAX)] {
            let bytes = archive(&Batch { base, horizon, entries: entries.clone(), ..Batch::default() });
            let batch = rkyv::access::<ArchivedBatch, Error>(&bytes).unwrap();
            let mut player = Player::new(base, VirtualTime::ZERO);
            player.begin(batch).unwrap();
            let (point, _) = player.peek(batch).unwrap().unwrap();
            assert_eq!(point, base.saturating_add(5));
        }
    }

    #[test]
    fn a_batch_does_not_go_back_behind_inputs_past_the_last_horizon() {
        let input = |at| vec![Entry::Serial { at, start: 0, len: 0 }];
        let first = archive(&Batch { horizon: 2, entries: input(3), ..Batch::default() });
        let second = archive(&Batch { base: 2, horizon: 4, entries: input(0), ..Batch::default() });
        let [first, second] = [&first, &second].map(|b| rkyv::access::<ArchivedBatch, Error>(b).unwrap());
        let mut player = Player::new(0, VirtualTime::ZERO);
        player.begin(first).unwrap();
        let (point, event) = player.peek(first).unwrap().unwrap();
        player.take(point, &event);
        player.begin(second).unwrap();
        let error = LogError::Order { entry: 0, point: 2, from: 3, horizon: 4 };
        assert_eq!(player.peek(second), Err(error));
    }

    #[test]
    fn a_missing_batch_is_noticed() {
        let mut builder = BatchBuilder::new(0, VirtualTime::ZERO, 0);
        builder.seal(5, 0);
        builder.begin();
        let bytes = archive(builder.seal(9, 0));
        let batch = rkyv::access::<ArchivedBatch, Error>(&bytes).unwrap();
        let error = Player::new(0, VirtualTime::ZERO).begin(batch).unwrap_err();
        assert_eq!(error, LogError::Gap { expected: 0, found: 5 });
    }
}
