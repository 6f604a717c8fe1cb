//! Disk requests that pass by the gate: reads and flushes whenever nothing before them waits, writes by the gate's rule.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::host::config::DiskConfig;
use crate::host::io::disk::Disks;
use crate::host::vcpu::clock::HostClock;
use crate::host::vcpu::inputs::{HostInputs, inputs};
use crate::machine::input::{DiskStatus, Input};
use crate::machine::output::{DiskOp, DiskRequest, Outputs, Packet};
use crate::machine::time::VirtualTime;
use crate::replay::recorder::{Inputs, Log};

use super::passage_tests::Primary;

const SECTOR: usize = 512;

const LEASE: Duration = Duration::from_secs(60);

struct Bed {
    primary: Primary,
    inputs: HostInputs,
    disks: Arc<Disks>,
    file: tempfile::NamedTempFile,
}

impl Bed {
    fn new() -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 4 * SECTOR]).unwrap();
        let mut primary = Primary::new();
        let (inputs, [completions]) = inputs::<1>(HostClock::continuing(VirtualTime::ZERO), 1 << 20);
        let config = [DiskConfig { path: file.path().to_owned(), read_only: false }];
        let disks = Disks::start(&config, completions, Arc::clone(&primary.shared.lease)).unwrap();
        let disks = Arc::new(disks);
        primary.log.open_disks(Arc::clone(&disks));
        Self { primary, inputs, disks, file }
    }

    /// The guest asks for something; the tag is the sector. What it relies on was sent, or is in the `next` batch.
    fn ask(&mut self, next: bool, tag: u64, op: DiskOp<'_>) {
        self.primary.log.wait_for_next(next);
        self.primary.log.kicked();
        self.primary.log.disk(DiskRequest { disk: 0, tag, op });
        self.primary.log.made_outputs();
    }

    fn read(&mut self, next: bool, tag: u64) {
        self.ask(next, tag, DiskOp::Read { offset: tag * SECTOR as u64, len: SECTOR as u32 });
    }

    fn write(&mut self, next: bool, tag: u64, byte: u8) {
        self.ask(next, tag, DiskOp::Write { offset: tag * SECTOR as u64, data: &[byte; SECTOR] });
    }

    /// Tag of the next completion, and the first byte read.
    fn done(&mut self) -> (u64, Option<u8>) {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.inputs.pending() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let Some(Input::DiskDone { disk: 0, tag, status: DiskStatus::Ok, data }) = self.inputs.front() else {
            panic!("a completion was to come, not {:?}", self.inputs.front());
        };
        let done = (tag, data.first().copied());
        self.inputs.take();
        done
    }

    fn on_disk(&self, sector: usize) -> u8 {
        std::fs::read(self.file.path()).unwrap()[sector * SECTOR]
    }
}

#[test]
fn reads_and_flushes_wait_for_no_ack_and_no_lease() {
    let mut bed = Bed::new();
    bed.primary.commit(false);
    bed.read(false, 1);
    assert_eq!((bed.done(), bed.primary.held()), ((1, Some(7)), 0));
    // What they come of is not even sent.
    bed.read(true, 2);
    bed.ask(true, 9, DiskOp::Flush);
    assert_eq!((bed.done(), bed.done(), bed.primary.held()), ((2, Some(7)), (9, None), 0));
    assert!(!bed.primary.log.urgent(), "nobody waits for the next batch");
}

#[test]
fn writes_pass_with_their_log_acknowledged_and_a_lease_and_wait_at_the_gate_otherwise() {
    let mut bed = Bed::new();
    // Neither; an ack without a lease; a lease without an ack; with both, what relies on the batch to come.
    bed.primary.commit(false);
    bed.write(false, 0, 1);
    assert_eq!(bed.primary.held(), 1);
    bed.primary.commit(true);
    bed.write(false, 0, 1);
    assert_eq!(bed.primary.held(), 1);
    bed.primary.lease(LEASE);
    bed.primary.commit(false);
    bed.write(false, 0, 1);
    assert_eq!(bed.primary.held(), 1);
    bed.primary.commit(true);
    bed.write(true, 0, 1);
    assert_eq!(bed.primary.held(), 1);
    assert!(bed.disks.are_idle() && bed.on_disk(0) == 7);
    // Both.
    bed.write(false, 1, 2);
    assert_eq!((bed.done(), bed.on_disk(1), bed.primary.held()), ((1, None), 2, 0));
    // It is an output, and was counted.
    assert_eq!(bed.primary.gate.delays.told().unwrap().count, 1);
}

#[test]
fn what_comes_behind_a_request_that_waits_waits_too() {
    let mut bed = Bed::new();
    bed.primary.lease(LEASE);
    bed.primary.commit(false);
    bed.write(false, 1, 2);
    // It would find the old contents.
    bed.read(false, 1);
    bed.ask(false, 9, DiskOp::Flush);
    bed.primary.commit(true);
    bed.write(false, 2, 3);
    assert!(bed.disks.are_idle() && !bed.inputs.pending());
    assert_eq!(bed.primary.held(), 4);
    // They have left: the way is free again.
    bed.read(false, 1);
    assert_eq!((bed.done(), bed.primary.held()), ((1, Some(7)), 0));
}

#[test]
fn packets_leave_before_a_write_that_follows_them() {
    let mut bed = Bed::new();
    bed.primary.lease(LEASE);
    bed.primary.commit(true);
    bed.primary.log.wait_for_next(false);
    bed.primary.log.packet(0, &Packet::from_bytes(&[5; 60]).unwrap());
    assert!(bed.primary.seen().is_empty());
    let data = &[2; SECTOR];
    bed.primary.log.disk(DiskRequest { disk: 0, tag: 1, op: DiskOp::Write { offset: 0, data } });
    assert_eq!((bed.primary.seen(), bed.done(), bed.on_disk(0)), (vec![5], (1, None), 2));
    // With no lease they stay, and the write behind them.
    bed.primary.log.packet(0, &Packet::from_bytes(&[6; 60]).unwrap());
    bed.primary.lease(Duration::ZERO);
    bed.primary.log.disk(DiskRequest { disk: 0, tag: 2, op: DiskOp::Write { offset: 0, data } });
    assert!(bed.primary.log.made_outputs());
    assert_eq!((bed.primary.seen(), bed.primary.held()), (vec![], 2));
}
