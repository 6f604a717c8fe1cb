//! Disk requests, completed late and out of order.

use crate::driver::*;
use tandem_vmm::machine::input::DiskStatus;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::blk::{Blk, CompletionError, MAX_IN_FLIGHT_BYTES, MAX_REQUEST};

const SECTORS: u64 = 100_000;
const HEADERS: u64 = 0x4_0000;
const STATUSES: u64 = 0x5_0000;
const DATA: u64 = 0x8_0000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

struct Disk {
    rig: Rig,
    ring: Ring,
    requests: u64,
}

impl Disk {
    fn new(read_only: bool, features: u64) -> Self {
        let ring = Ring::at(0, 128);
        let blk = Blk::new(1, SECTORS, read_only, *b"tandem-disk-1\0\0\0\0\0\0\0");
        let rig = Rig::running(VirtioDevice::Blk(blk), features, std::slice::from_ref(&ring));
        Self { rig, ring, requests: 0 }
    }

    /// Makes a request available: returns its head and where its status byte will be.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u16, u64) {
        let header_at = HEADERS + self.requests % 256 * 16;
        let status_at = STATUSES + self.requests % 256;
        self.requests += 1;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.rig.put(header_at, &header);
        self.rig.put(status_at, &[0xee]);
        let mut buffers = vec![(header_at, 16, false)];
        buffers.extend_from_slice(data);
        buffers.push((status_at, 1, true));
        (self.ring.add(self.rig.mem(), &buffers), status_at)
    }

    fn kick(&mut self) -> Vec<Out> {
        self.rig.kick(&self.ring);
        self.rig.take_outputs()
    }

    fn used(&mut self) -> Option<(u32, u32)> {
        self.ring.used(self.rig.mem())
    }

    fn status(&self, at: u64) -> u8 {
        self.rig.bytes(at, 1)[0]
    }

    fn in_flight(&self) -> Vec<Out> {
        self.rig.device.blk().unwrap().in_flight().map(Out::from).collect()
    }
}

#[test]
fn requests_complete_in_any_order() {
    for features in [0, EVENT_IDX] {
        let mut d = Disk::new(false, features);
        d.rig.put(DATA, &[1; 512]);
        d.rig.put(DATA + 0x1000, &[2; 512]);
        let (write, write_status) = d.request(OUT, 10, &[(DATA, 512, false), (DATA + 0x1000, 512, false)]);
        let (read, read_status) =
            d.request(IN, 20, &[(DATA + 0x2000, 500, true), (DATA + 0x3000, 524, true)]);
        let (flush, flush_status) = d.request(FLUSH, 0, &[]);
        let mut written = vec![1; 512];
        written.extend([2; 512]);
        let sent = d.kick();
        let expected = [
            Out::Write { tag: 0, offset: 5120, data: written },
            Out::Read { tag: 1, offset: 10240, len: 1024 },
            Out::Flush { tag: 2 },
        ];
        assert_eq!(sent, expected);
        assert_eq!(d.in_flight(), expected);
        assert_eq!(d.used(), None);
        assert!(!d.rig.device.interrupt());

        // The guest's memory may change: what was asked for is what is issued again.
        d.rig.put(DATA, &[9; 512]);
        assert_eq!(d.in_flight(), expected);

        d.rig.complete(2, DiskStatus::Ok, &[]).unwrap();
        assert_eq!(d.used(), Some((u32::from(flush), 1)));
        assert_eq!(d.status(flush_status), 0);
        assert!(d.rig.take_interrupt());
        assert_eq!(d.in_flight(), expected[..2]);

        // Nothing of a read is in memory before its completion.
        assert_eq!(d.rig.bytes(DATA + 0x2000, 500), [0; 500]);
        let data: Vec<u8> = (0..1024u32).map(|n| n as u8).collect();
        d.ring.set_used_event(d.rig.mem(), 1);
        d.rig.complete(1, DiskStatus::Ok, &data).unwrap();
        assert_eq!(d.used(), Some((u32::from(read), 1025)));
        assert_eq!(d.status(read_status), 0);
        assert_eq!(d.rig.bytes(DATA + 0x2000, 500), data[..500]);
        assert_eq!(d.rig.bytes(DATA + 0x3000, 524), data[500..]);
        assert!(d.rig.take_interrupt());

        d.rig.complete(0, DiskStatus::IoError, &[]).unwrap();
        assert_eq!(d.used(), Some((u32::from(write), 1)));
        assert_eq!(d.status(write_status), 1);
        assert!(d.in_flight().is_empty());
    }
}

#[test]
fn a_failed_read_leaves_memory_alone() {
    let mut d = Disk::new(false, 0);
    d.rig.put(DATA, &[7; 512]);
    let (head, status) = d.request(IN, 0, &[(DATA, 512, true)]);
    d.kick();
    d.rig.complete(0, DiskStatus::IoError, &[]).unwrap();
    assert_eq!(d.used(), Some((u32::from(head), 0)));
    assert_eq!((d.status(status), d.rig.bytes(DATA, 512)), (1, vec![7; 512]));
}

#[test]
fn the_disk_ends_where_it_ends() {
    let mut d = Disk::new(false, 0);
    for (kind, sector, len) in [
        (IN, SECTORS, 512),
        (IN, SECTORS - 1, 1024),
        (IN, u64::MAX, 512),
        (IN, u64::MAX / 512 + 1, 512),
        (IN, 0, 100),
        (OUT, SECTORS, 512),
        (OUT, 0, 513),
        (IN, 0, MAX_REQUEST + 512),
        (OUT, 0, MAX_REQUEST + 512),
    ] {
        let (_, status) = d.request(kind, sector, &[(DATA, len, kind == IN)]);
        assert!(d.kick().is_empty(), "{kind} {sector} {len}");
        assert!(d.used().is_some() && d.rig.take_interrupt());
        assert_eq!(d.status(status), 1, "{kind} {sector} {len}");
    }
    for (sector, len) in [(SECTORS - 1, 512), (0, MAX_REQUEST)] {
        d.request(IN, sector, &[(DATA, len, true)]);
        assert_eq!(d.kick().len(), 1);
    }
    // No data at all.
    let (_, status) = d.request(IN, 0, &[]);
    assert!(d.kick().is_empty());
    assert_eq!(d.status(status), 1);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut d = Disk::new(true, 0);
    assert_eq!(d.rig.get(DEVICE_FEATURES) & 1 << 5, 1 << 5);
    let (_, status) = d.request(OUT, 0, &[(DATA, 512, false)]);
    assert!(d.kick().is_empty());
    assert_eq!(d.status(status), 1);
    d.request(IN, 0, &[(DATA, 512, true)]);
    assert_eq!(d.kick().len(), 1);
}

#[test]
fn identification_and_unknown_requests_are_answered_inside() {
    let mut d = Disk::new(false, 0);
    let (head, status) = d.request(GET_ID, 0, &[(DATA, 20, true)]);
    assert!(d.kick().is_empty());
    assert_eq!(d.used(), Some((u32::from(head), 21)));
    assert_eq!((d.status(status), &d.rig.bytes(DATA, 14)[..]), (0, &b"tandem-disk-1\0"[..]));
    let (_, status) = d.request(GET_ID, 0, &[(DATA, 19, true)]);
    d.kick();
    assert_eq!(d.status(status), 1);
    for kind in [2, 3, 11, 13, 0x8000_0000] {
        let (_, status) = d.request(kind, 0, &[(DATA, 512, true)]);
        assert!(d.kick().is_empty());
        assert_eq!(d.status(status), 2);
    }
    assert!(!d.rig.needs_reset());
}

#[test]
fn a_chain_without_header_or_status_is_an_error() {
    for buffers in [&[(DATA, 15, false), (DATA, 1, true)][..], &[(DATA, 16, false)], &[(DATA, 100, true)]] {
        let mut d = Disk::new(false, 0);
        d.ring.add(d.rig.mem(), buffers);
        assert!(d.kick().is_empty());
        assert!(d.rig.needs_reset(), "{buffers:?}");
    }
}

#[test]
fn a_completion_that_fits_nothing_is_refused_and_changes_nothing() {
    let mut d = Disk::new(false, 0);
    d.request(IN, 0, &[(DATA, 512, true)]);
    d.request(OUT, 0, &[(DATA, 512, false)]);
    d.kick();
    let before = (d.rig.state_hash(), d.rig.memory_hash());
    assert_eq!(d.rig.complete(7, DiskStatus::Ok, &[]), Err(CompletionError::UnknownTag { disk: 1, tag: 7 }));
    for (tag, status, found, expected) in [
        (0, DiskStatus::Ok, 511, 512),
        (0, DiskStatus::Ok, 0, 512),
        (0, DiskStatus::Ok, 1024, 512),
        (0, DiskStatus::IoError, 512, 0),
        (1, DiskStatus::Ok, 512, 0),
    ] {
        assert_eq!(
            d.rig.complete(tag, status, &vec![0; found]),
            Err(CompletionError::Length { disk: 1, tag, expected, found })
        );
    }
    assert_eq!((d.rig.state_hash(), d.rig.memory_hash()), before);
    d.rig.complete(0, DiskStatus::Ok, &[0; 512]).unwrap();
    assert!(d.rig.complete(0, DiskStatus::Ok, &[0; 512]).is_err());
}

#[test]
fn after_a_reset_answers_go_nowhere_and_tags_go_on() {
    let mut d = Disk::new(false, 0);
    d.rig.put(DATA, &[7; 512]);
    d.request(IN, 0, &[(DATA, 512, true)]);
    d.request(OUT, 4, &[(DATA, 512, false)]);
    d.kick();
    d.rig.set(STATUS, 0);
    // The write is still on its way, and still has to be issued again by a backup that goes live.
    assert_eq!(d.in_flight().len(), 2);
    let before = d.rig.memory_hash();
    d.rig.complete(0, DiskStatus::Ok, &[1; 512]).unwrap();
    assert_eq!(d.rig.memory_hash(), before);

    d.rig.put(d.ring.avail, &[0; 64]);
    d.rig.put(d.ring.used, &[0; 64]);
    d.ring = Ring::at(0, 128);
    d.rig.negotiate(VERSION_1);
    d.rig.enable(&d.ring);
    d.rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    d.rig.complete(1, DiskStatus::Ok, &[]).unwrap();
    assert_eq!(d.used(), None);
    d.request(FLUSH, 0, &[]);
    assert_eq!(d.kick(), [Out::Flush { tag: 2 }]);
}

#[test]
fn requests_beyond_the_bound_wait_in_the_queue() {
    let mut d = Disk::new(false, 0);
    let fit = (MAX_IN_FLIGHT_BYTES / u64::from(MAX_REQUEST)) as usize;
    for _ in 0..fit + 3 {
        d.request(IN, 0, &[(DATA, MAX_REQUEST, true)]);
    }
    d.request(FLUSH, 0, &[]);
    assert_eq!(d.kick().len(), fit);
    // Another kick changes nothing.
    assert!(d.kick().is_empty());
    let data = vec![3; MAX_REQUEST as usize];
    d.rig.complete(2, DiskStatus::Ok, &data).unwrap();
    assert_eq!(d.rig.take_outputs(), [Out::Read { tag: fit as u64, offset: 0, len: MAX_REQUEST }]);
    d.rig.complete(0, DiskStatus::Ok, &data).unwrap();
    d.rig.complete(1, DiskStatus::Ok, &data).unwrap();
    // The flush goes out behind the last read.
    let tail = d.rig.take_outputs();
    assert_eq!(tail.last(), Some(&Out::Flush { tag: fit as u64 + 3 }));
    assert_eq!(tail.len(), 3);
    let tags: Vec<u64> = d
        .in_flight()
        .iter()
        .map(|out| match *out {
            Out::Read { tag, .. } | Out::Flush { tag } => tag,
            _ => panic!("{out:?}"),
        })
        .collect();
    assert!(tags.is_sorted() && tags.len() == fit + 1, "{tags:?}");
}
