//! What a recorded log costs: its rate, and what it is made of.

use std::path::PathBuf;

use anyhow::ensure;
use rkyv::rancor::Error;
use serde::Serialize;
use tandem_vmm::host::run::logfile::{LogReader, RecordKind};
use tandem_vmm::replay::batch::{ArchivedBatch, ArchivedEntry};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A log of `tandem record`.
    log: PathBuf,
    /// Only the last so many seconds of the guest's time; 0: all.
    #[arg(long, default_value_t = 0)]
    last: u64,
}

/// The line of JSON.
#[derive(Debug, Default, Serialize)]
struct Figures {
    bench: &'static str,
    seconds: f64,
    mbit_s: f64,
    batches: u64,
    entries: u64,
    forced_stops: u64,
    forced_stops_per_s: f64,
    captured_bytes: u64,
}

/// One batch.
#[derive(Clone, Copy)]
struct Seen {
    /// Guest time before it, in nanoseconds.
    time: u64,
    bytes: u64,
    entries: u64,
    stops: u64,
    captured: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (mut reader, _) = LogReader::open(&args.log)?;
    let mut seen = Vec::new();
    while let Some(kind) = reader.next_record()? {
        if kind != RecordKind::Batch {
            continue;
        }
        let batch = rkyv::access::<ArchivedBatch, Error>(reader.payload())?;
        let stops = batch.entries.iter().filter(|e| matches!(e, ArchivedEntry::ForcedStop { .. })).count();
        seen.push(Seen {
            time: batch.time.to_native(),
            // As over a channel: a header of 32 bytes around each.
            bytes: reader.payload().len() as u64 + 32,
            entries: batch.entries.len() as u64,
            stops: stops as u64,
            captured: batch.captured.len() as u64,
        });
    }
    let end = seen.last().map_or(0, |batch| batch.time);
    let begin = if args.last == 0 { 0 } else { end.saturating_sub(args.last * 1_000_000_000) };
    seen.retain(|batch| batch.time >= begin);
    let seconds = (end - begin) as f64 / 1e9;
    ensure!(seconds > 0.0, "the log is empty");
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let stops = sum(|batch| batch.stops);
    let figures = Figures {
        bench: "log",
        seconds,
        mbit_s: sum(|batch| batch.bytes) as f64 * 8e-6 / seconds,
        batches: seen.len() as u64,
        entries: sum(|batch| batch.entries),
        forced_stops: stops,
        forced_stops_per_s: stops as f64 / seconds,
        captured_bytes: sum(|batch| batch.captured),
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}
