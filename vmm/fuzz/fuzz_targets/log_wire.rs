//! A log off the wire, by the way it takes in a backup: received, checked, put into the ring, read where it
//! lies, applied. With the first byte odd, headers and checksums are repaired before, so that the fuzzer reaches
//! what lies behind them.
//!
//! `cargo +nightly fuzz run log_wire fuzz/corpus/log_wire fuzz/seeds/log_wire` in `vmm/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use tandem_logchan::backup::{Next, pair};
use tandem_logchan::frame::{HEADER_LEN, Kind, MAGIC};
use tandem_logchan::transport::SendHalf;
use tandem_logchan::transport::inproc::link;
use tandem_vmm::host::guest::BootFacts;
use tandem_vmm_fuzz::Backup;

const NOW: Option<Duration> = Some(Duration::ZERO);

/// Makes a series of frames of generation 1 out of `wire`, with the payloads and lengths that it has.
fn repair(wire: &mut Vec<u8>) {
    let (mut at, mut sequence) = (0, 0u64);
    while wire.len() - at >= HEADER_LEN {
        sequence += 1;
        let header = &wire[at..at + HEADER_LEN];
        let stated = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        let payload = stated.min(wire.len() - at - HEADER_LEN);
        let (kind, flags) = (header[10].clamp(1, 4), header[11] & 1);
        let end = at + (HEADER_LEN + payload).next_multiple_of(16);
        wire.resize(wire.len().max(end), 0);
        let frame = &mut wire[at..end];
        frame[..4].copy_from_slice(&MAGIC);
        frame[8..12].copy_from_slice(&[1, 0, kind, flags]);
        frame[12..16].copy_from_slice(&(payload as u32).to_le_bytes());
        frame[16..24].copy_from_slice(&1u64.to_le_bytes());
        frame[24..32].copy_from_slice(&sequence.to_le_bytes());
        frame[44..48].fill(0);
        frame[HEADER_LEN + payload..].fill(0);
        let crc = crc32c::crc32c(&frame[HEADER_LEN..]);
        frame[40..44].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&frame[8..HEADER_LEN]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else { return };
    let mut wire = bytes.to_vec();
    if mode & 1 != 0 {
        repair(&mut wire);
    }
    let mut link = link(0).expect("a link");
    link.send.room()[..wire.len()].copy_from_slice(&wire);
    link.send.commit(wire.len());
    link.send.flush().expect("a whole link");
    drop(link.send);
    let (mut receiver, mut reader) = pair(link.backup, 1, 0);
    // To the loss: the end of the stream, at the latest.
    while receiver.poll(NOW).is_ok() {}
    let mut backup = None;
    while let Next::Frame(frame) = reader.next(NOW).expect("what was received was checked") {
        match (frame.header.kind, &mut backup) {
            (Kind::State, None) => match BootFacts::decode(frame.payload) {
                Some(facts) => backup = Some(Backup::new(&facts)),
                None => return,
            },
            (Kind::Batch, Some(backup)) => {
                if backup.batch(frame.payload).is_none() {
                    return;
                }
            }
            _ => {}
        }
        reader.release();
    }
});
