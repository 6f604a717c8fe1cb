//! Batches with every kind of entry, well-formed archives with any contents: points, times and payloads that
//! follow each other or do not. Some have bytes changed after they were archived.
//!
//! `cargo +nightly fuzz run log_entries` in `vmm/`.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rkyv::rancor::Error;
use rkyv::util::AlignedVec;
use tandem_vmm::host::guest::BootFacts;
use tandem_vmm::replay::batch::{Batch, Entry};
use tandem_vmm_fuzz::Backup;

/// A number that fits what came before, mostly.
#[derive(Arbitrary, Debug)]
enum Number {
    Follows(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Op {
    Time {
        at: u16,
        ns: u32,
    },
    TimeLong {
        at: u16,
        lo: u32,
        hi: u32,
    },
    Packet {
        at: u16,
        nic: bool,
        start: u16,
        len: u16,
    },
    DiskDone {
        at: u16,
        disk: u8,
        tag_high: u16,
        tag: u32,
        start: u16,
        len: u16,
    },
    Serial {
        at: u16,
        start: u16,
        len: u16,
    },
    Console {
        at: u16,
        start: u16,
        len: u16,
    },
    ForcedStop {
        at: u16,
        start: u16,
        len: u16,
        captured: u16,
    },
    /// Beyond what the others can say.
    Wild {
        at: u32,
        start: u32,
        len: u32,
    },
}

impl From<&Op> for Entry {
    fn from(op: &Op) -> Self {
        let wide = u32::from;
        match *op {
            Op::Time { at, ns } => Self::Time { at: wide(at), ns },
            Op::TimeLong { at, lo, hi } => Self::TimeLong { at: wide(at), lo, hi },
            Op::Packet { at, nic, start, len } => {
                Self::Packet { nic: nic.into(), at: wide(at), start: wide(start), len: wide(len) }
            }
            Op::DiskDone { at, disk, tag_high, tag, start, len } => {
                Self::DiskDone { disk, tag_high, at: wide(at), tag, start: wide(start), len: wide(len) }
            }
            Op::Serial { at, start, len } => {
                Self::Serial { at: wide(at), start: wide(start), len: wide(len) }
            }
            Op::Console { at, start, len } => {
                Self::Console { at: wide(at), start: wide(start), len: wide(len) }
            }
            Op::ForcedStop { at, start, len, captured } => Self::ForcedStop {
                at: wide(at),
                start: wide(start),
                len: wide(len),
                captured: wide(captured),
            },
            Op::Wild { at, start, len } => Self::Serial { at, start, len },
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Logged {
    base: Number,
    horizon: Number,
    time: Number,
    entries: Vec<Op>,
    blob: Vec<u8>,
    captured: Vec<u8>,
    /// Bytes of the archive to change.
    flips: Vec<(u16, u8)>,
}

fuzz_target!(|input: (u64, Vec<Logged>)| {
    let (wall_clock, batches) = input;
    let mut backup = Backup::new(&BootFacts { seed: [7; 32], wall_clock });
    let (mut horizon, mut time) = (0u64, 0u64);
    for logged in &batches {
        let number = |number: &Number, last: u64| match *number {
            Number::Follows(by) => last.wrapping_add(by.into()),
            Number::Any(any) => any,
        };
        let base = match logged.base {
            Number::Follows(_) => horizon,
            Number::Any(any) => any,
        };
        let begins = match logged.time {
            Number::Follows(_) => time,
            Number::Any(any) => any,
        };
        let batch = Batch {
            base,
            horizon: number(&logged.horizon, base),
            time: begins,
            digest: 0,
            entries: logged.entries.iter().map(Entry::from).collect(),
            blob: logged.blob.clone(),
            captured: logged.captured.clone(),
        };
        time = batch.entries.iter().fold(begins, |time, entry| match *entry {
            Entry::Time { ns, .. } => time.wrapping_add(ns.into()),
            Entry::TimeLong { lo, hi, .. } => time.wrapping_add(u64::from(lo) | u64::from(hi) << 32),
            _ => time,
        });
        horizon = batch.horizon;
        let mut payload: AlignedVec<16> =
            rkyv::api::high::to_bytes_in::<_, Error>(&batch, AlignedVec::new()).expect("archivable");
        for (at, value) in &logged.flips {
            let at = usize::from(*at) % payload.len();
            payload[at] = *value;
        }
        if backup.batch(&payload).is_none() {
            return;
        }
    }
});
