//! Frames and acks off the wire. Half of the inputs get their checksums repaired, so that the fuzzer
//! reaches what lies behind them.
//!
//! `cargo +nightly fuzz run frame_decode` in `logchan/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};
use tandem_logchan::ack::Ack;
use tandem_logchan::codec::access;
use tandem_logchan::frame::{Envelope, Frame, HEADER_LEN, MAGIC};

#[derive(Archive, Serialize)]
#[allow(dead_code)]
struct Batch {
    position: u64,
    entries: Vec<Entry>,
    blob: Vec<u8>,
    note: Option<String>,
}

#[derive(Archive, Serialize)]
#[allow(dead_code)]
enum Entry {
    Time { nanos: u64 },
    Packet { nic: u8, at: u32, len: u32 },
}

fuzz_target!(|input: (bool, &[u8])| {
    let (repair, bytes) = input;
    let mut frame = AlignedVec::<16>::new();
    frame.extend_from_slice(bytes);
    if repair && frame.len() >= HEADER_LEN {
        frame[..4].copy_from_slice(&MAGIC);
        let (kind, flags) = (frame[10] % 6, frame[11] & 1);
        frame[8..12].copy_from_slice(&[1, 0, kind, flags]);
        let payload_len = (frame.len() - HEADER_LEN) as u32;
        frame[12..16].copy_from_slice(&payload_len.to_le_bytes());
        frame[44..48].fill(0);
        while frame.len() % 16 != 0 {
            frame.push(0);
        }
        let payload_crc = crc32c::crc32c(&frame[HEADER_LEN..]);
        frame[40..44].copy_from_slice(&payload_crc.to_le_bytes());
        let header_crc = crc32c::crc32c(&frame[8..HEADER_LEN]);
        frame[4..8].copy_from_slice(&header_crc.to_le_bytes());
    }
    let _ = Envelope::decode(&frame);
    let Ok(decoded) = Frame::decode(&frame) else { return };
    assert!(decoded.wire_len() <= frame.len());
    let _ = Ack::from_frame(&decoded);
    let _ = Ack::decode(decoded.payload);
    if let Ok(batch) = access::<Batch>(decoded.payload) {
        // What was validated can be read to the last byte.
        let sum: u64 = batch.blob.iter().map(|byte| u64::from(*byte)).sum();
        let entries = batch.entries.iter().filter(|entry| matches!(entry, ArchivedEntry::Packet { .. })).count();
        std::hint::black_box((sum, entries, batch.note.as_ref().map(|note| note.len())));
    }
});
