//! The embedded guest under load, recorded and replayed; and logs that somebody changed.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of it is test code")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tandem_tests::bed::Bed;
use tandem_tests::client::{Client, Load};
use tandem_tests::lab;

/// What runs, and a bed for it; or nothing.
fn bed() -> Option<(PathBuf, Bed)> {
    let bed = Bed::to_test("replay").unwrap()?;
    Some((bed.program().to_owned(), bed))
}

/// Records a few seconds of load.
fn recording(bed: &mut Bed) -> PathBuf {
    let time = Duration::from_secs(3);
    let (mut side, log) = bed.record(time).unwrap();
    let load = Load { depth: 4, patience: bed.patience(5.0), ..Load::new(bed.server(), 3) };
    let client = Client::start(Some(bed.lab.client()), load).unwrap();
    client.wait_for_replies(Instant::now(), bed.patience(5.0)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let report = client.finish().unwrap();
    assert!(report.clean() && report.acked > 100, "{report:?}");
    let status = side.process.wait(bed.patience(20.0)).expect("record stops after its time");
    assert!(status.success(), "{}", side.process.last_words(10));
    log
}

fn replay(tandem: &Path, log: &Path) -> Output {
    let mut command = Command::new(tandem);
    command.arg("replay").arg(log).arg("--verify");
    command.env_remove("RUST_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where a record of the log lies: its header of 16 bytes (magic, kind, length, crc32c), then its payload,
/// padded to 16 bytes.
#[derive(Clone, Copy, Debug)]
struct Record {
    kind: u32,
    payload: usize,
    len: usize,
}

const BATCH: u32 = 1;
const END: u32 = 3;

fn records(log: &[u8]) -> Vec<Record> {
    let word = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap());
    let mut at = 0;
    let mut found = vec![];
    while at < log.len() {
        let record = Record { kind: word(at + 4), payload: at + 16, len: word(at + 8) as usize };
        at = record.payload + record.len.next_multiple_of(16);
        found.push(record);
    }
    found
}

fn mend_checksum(log: &mut [u8], record: Record) {
    let sum = crc32c::crc32c(&log[record.payload..record.payload + record.len]);
    log[record.payload - 4..record.payload].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_recording_replays_and_a_changed_one_is_told_from_it() {
    let _alone = lab::alone().unwrap();
    let Some((tandem, mut bed)) = bed() else { return };
    let log = recording(&mut bed);
    let output = replay(&tandem, &log);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    assert!(
        said.contains("verified: ") && said.contains("devices and memory at the end are equal"),
        "{said}"
    );

    let whole = fs::read(&log).unwrap();
    let records = records(&whole);
    let batches: Vec<_> = records.iter().copied().filter(|record| record.kind == BATCH).collect();
    assert_eq!(records.last().unwrap().kind, END);
    assert!(batches.len() > 10, "{}", batches.len());

    a_damaged_log_is_refused(&tandem, &log, &whole, batches[batches.len() / 2]);
    another_input_is_a_divergence(&tandem, &log, &whole, &batches);
    a_log_without_its_end_is_replayed_as_far_as_it_goes(&tandem, &log, &whole, batches[batches.len() / 2]);
}

fn a_damaged_log_is_refused(tandem: &Path, log: &Path, whole: &[u8], batch: Record) {
    let mut damaged = whole.to_vec();
    damaged[batch.payload + batch.len / 2] ^= 0x10;
    fs::write(log, damaged).unwrap();
    let output = replay(tandem, log);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is damaged") && said.contains("checksum") && said.contains("record "), "{said}");
}

/// One bit of one packet: of the value of a SET that a client sent.
fn another_input_is_a_divergence(tandem: &Path, log: &Path, whole: &[u8], batches: &[Record]) {
    let (batch, at) = batches
        .iter()
        .skip(batches.len() / 2)
        .find_map(|batch| {
            let payload = &whole[batch.payload..batch.payload + batch.len];
            let set = payload.windows(5).position(|bytes| bytes == b"SET\r\n")?;
            Some((*batch, batch.payload + set + 16))
        })
        .expect("a SET is in the log");
    let mut changed = whole.to_vec();
    changed[at] ^= 0x01;
    mend_checksum(&mut changed, batch);
    fs::write(log, changed).unwrap();
    let output = replay(tandem, log);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{said}{}", text(&output.stderr));
    for part in ["divergence at exit ", "RIP 0x", "expected ", "found "] {
        assert!(said.contains(part), "it says where and what: {said}");
    }
}

fn a_log_without_its_end_is_replayed_as_far_as_it_goes(tandem: &Path, log: &Path, whole: &[u8], cut: Record) {
    fs::write(log, &whole[..cut.payload + cut.len / 2]).unwrap();
    let output = replay(tandem, log);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    assert!(said.contains("the recording was cut off"), "{said}");
}
