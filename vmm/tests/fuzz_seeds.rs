//! What the fuzzers of `vmm/fuzz` start from: one log with every kind of entry, as it goes over the wire, and one
//! forced stop. Here it is checked that the files are of today's format, and that they can be played.
//!
//! `TANDEM_WRITE_SEEDS=1` writes them anew.
#![allow(clippy::unwrap_used, reason = "all of it is test code, the functions around the tests too")]

use std::fs;
use std::path::Path;

use rkyv::rancor::Error;
use tandem_kmod_brain::trap::Trap;
use tandem_logchan::codec::FrameBuf;
use tandem_logchan::frame::{self, Flags, Frame, Header, Kind};
use tandem_vmm::host::guest::BootFacts;
use tandem_vmm::machine::cpu::image::{CapturedState, VcpuImage};
use tandem_vmm::machine::input::{DiskStatus, Input};
use tandem_vmm::machine::memory::PAGE_SIZE;
use tandem_vmm::machine::time::VirtualTime;
use tandem_vmm::replay::batch::ArchivedBatch;
use tandem_vmm::replay::builder::BatchBuilder;
use tandem_vmm::replay::player::Player;
use tandem_vmm::replay::shipped::LINE;
use tandem_vmm::replay::stop::{Packing, StopImage};

/// The first byte tells the fuzzer's target what to make of the rest.
const AS_IT_IS: u8 = 0;
const TO_REPAIR: u8 = 1;

fn stop_image() -> StopImage {
    let vcpu = VcpuImage {
        regs: vec![1; 144],
        sregs: vec![2; 312],
        events: vec![0; 64],
        debug: vec![0; 128],
        xcrs: vec![0; 392],
        xsave: vec![0; 4096],
        msrs: vec![(0x277, 0x0007_0406_0007_0406)],
        captured: CapturedState { tsc: 5120, tsc_aux: 1, digest: 7 },
    };
    StopImage {
        vcpu,
        part: 0,
        pages: vec![3, 9],
        changed: vec![u64::MAX, 1],
        lines: vec![7; PAGE_SIZE + LINE],
    }
}

fn header(kind: Kind, sequence: u64) -> Header {
    Header { kind, flags: Flags::OUTPUT, generation: 1, sequence, stamp: sequence * 1000 }
}

/// The facts of a boot, and two batches with every kind of entry.
fn wire() -> Vec<u8> {
    let facts = BootFacts { seed: [7; 32], wall_clock: 1_700_000_000 };
    let mut wire = vec![0; frame::frame_len(facts.encode().len())];
    frame::encode(&header(Kind::State, 1), &facts.encode(), &mut wire).unwrap();
    let mut builder = BatchBuilder::new(0, VirtualTime::ZERO, 0);
    let time = |ns| Input::Time(VirtualTime::from_nanos(ns));
    builder.input(1, &time(1_000));
    builder.input(2, &Input::Packet { nic: 0, packet: &[0x55; 60] });
    builder.input(2, &Input::Serial(b"help\n"));
    let mut frames = FrameBuf::new();
    wire.extend_from_slice(frames.encode(&header(Kind::Batch, 2), builder.seal(4, 0x1234)).unwrap());
    builder.begin();
    builder.captured(Trap::Rdtsc, 4096);
    builder.captured(Trap::Rdtscp, 5120);
    builder.captured(Trap::Rdrand, 0x1234_5678_9abc);
    builder.forced_stop(5, &stop_image().pack(true, Packing::Lz4).unwrap(), 0);
    builder.input(5, &time(9_000_000_000));
    builder.input(6, &Input::Console(b"x"));
    builder.input(6, &Input::ShadowDropped);
    builder.input(7, &Input::DiskDone { disk: 0, tag: 1, status: DiskStatus::Ok, data: &[1; 512] });
    wire.extend_from_slice(frames.encode(&header(Kind::Batch, 3), builder.seal(7, 0x5678)).unwrap());
    wire
}

fn seed(mode: u8, bytes: &[u8]) -> Vec<u8> {
    [&[mode], bytes].concat()
}

/// That the file holds exactly this.
fn check(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    if std::env::var_os("TANDEM_WRITE_SEEDS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let found = fs::read(&path).unwrap();
    assert!(found == bytes, "{name} is of another format than today's: run with TANDEM_WRITE_SEEDS=1");
}

#[test]
fn seeds_are_of_todays_format() {
    check("log_wire/as-it-is", &seed(AS_IT_IS, &wire()));
    check("log_wire/to-repair", &seed(TO_REPAIR, &wire()));
    let image = stop_image();
    check("stop_image/packed", &seed(0, &image.pack(true, Packing::Lz4).unwrap()));
    check("stop_image/plain", &seed(0, &image.pack(false, Packing::Plain).unwrap()));
    // Unpacked, and small enough that changes hit what matters.
    let small = StopImage { pages: Vec::new(), changed: Vec::new(), lines: Vec::new(), ..image };
    check("stop_image/archive", &seed(1, &rkyv::to_bytes::<Error>(&small).unwrap()));
}

#[test]
fn the_log_among_the_seeds_can_be_played() {
    let bytes = wire();
    let mut wire = rkyv::util::AlignedVec::<16>::new();
    wire.extend_from_slice(&bytes);
    let mut player = Player::new(0, VirtualTime::ZERO);
    let (mut at, mut events) = (0, 0);
    while at < wire.len() {
        let frame = Frame::decode(&wire[at..]).unwrap();
        at += frame.wire_len();
        if frame.header.kind == Kind::Batch {
            let batch = rkyv::access::<ArchivedBatch, Error>(frame.payload).unwrap();
            player.begin(batch).unwrap();
            while let Some((point, event)) = player.peek(batch).unwrap() {
                player.take(point, &event);
                events += 1;
            }
        }
    }
    assert_eq!((events, player.horizon()), (8, 7));
}
