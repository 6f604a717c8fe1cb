use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::claim::Token;
use crate::paxos::Ballot;

const VM: VmId = VmId([7; 16]);
const SLOTS: u32 = 16;

/// What happens to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// An error; the write took effect.
    ErrorAfter,
    /// An error; the write did not take effect.
    ErrorBefore,
    /// The first bytes are written, then the power fails: an error, now and for all that follows.
    Cut(usize),
}

#[derive(Debug, Default)]
struct Device {
    bytes: Vec<u8>,
    writes: usize,
    fault: Option<(usize, Fault)>,
    dead: bool,
}

/// A device in memory with faults to come, shared by all who open it.
#[derive(Debug, Clone, Default)]
struct Memory(Rc<RefCell<Device>>);

impl Memory {
    /// The fault befalls the write after `writes` more.
    fn fail(&self, writes: usize, fault: Fault) {
        let mut device = self.0.borrow_mut();
        device.fault = Some((device.writes + writes, fault));
    }

    fn revive(&self) {
        let mut device = self.0.borrow_mut();
        (device.dead, device.fault) = (false, None);
    }

    fn flip(&self, offset: usize) {
        self.0.borrow_mut().bytes[offset] ^= 1;
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Medium for Memory {
    fn sector_size(&self) -> usize {
        512
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let device = self.0.borrow();
        if device.dead {
            return Err(eio());
        }
        let offset = offset as usize;
        let bytes = device.bytes.get(offset..offset + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let mut device = self.0.borrow_mut();
        if device.dead {
            return Err(eio());
        }
        let (offset, index) = (offset as usize, device.writes);
        device.writes += 1;
        let fault = device.fault.filter(|(at, _)| *at == index).map(|(_, fault)| fault);
        let length = match fault {
            None | Some(Fault::ErrorAfter) => buffer.len(),
            Some(Fault::ErrorBefore) => 0,
            Some(Fault::Cut(length)) => {
                device.dead = true;
                length.min(buffer.len())
            }
        };
        device.bytes[offset..offset + length].copy_from_slice(&buffer[..length]);
        if fault.is_some() { Err(eio()) } else { Ok(()) }
    }

    fn ends_at(&self, length: u64) -> io::Result<bool> {
        Ok(self.0.borrow().bytes.len() as u64 == length)
    }

    fn grow(&mut self, length: u64) -> io::Result<bool> {
        let bytes = &mut self.0.borrow_mut().bytes;
        bytes.resize(bytes.len().max(length as usize), 0);
        Ok(true)
    }
}

fn header() -> Header {
    Header { vm: VM, sector_size: 512, slots: SLOTS }
}

fn init() -> (Memory, Disk<Memory>) {
    let memory = Memory::default();
    let disk = Disk::init(Path::new("memory"), memory.clone(), header(), false).expect("init");
    (memory, disk)
}

fn open(memory: &Memory) -> Disk<Memory> {
    Disk::open(Path::new("memory"), memory.clone()).expect("opens")
}

fn claim_of(generation: u64, side: Side, token: u8) -> Claim {
    Claim { vm: VM, generation, side, token: Token([token; 16]), time_ms: 1 }
}

fn claim(disk: &mut Disk<Memory>, generation: u64, side: Side, token: u8) -> Result<Verdict, Error> {
    thread_local!(static INCARNATION: RefCell<u64> = const { RefCell::new(0) });
    let incarnation = INCARNATION.with_borrow_mut(|incarnation| {
        *incarnation += 1;
        *incarnation
    });
    let mut wait = |_: Duration| {};
    disk.claim(claim_of(generation, side, token), incarnation, Backoff::new(incarnation, &mut wait))
}

fn verdict(disk: &mut Disk<Memory>, generation: u64, side: Side, token: u8) -> Verdict {
    claim(disk, generation, side, token).expect("a verdict")
}

fn lost(generation: u64, side: Side, token: u8) -> Verdict {
    Verdict::Lost { winner: claim_of(generation, side, token) }
}

#[test]
fn the_first_wins_for_good() {
    let (memory, mut disk) = init();
    assert_eq!(verdict(&mut disk, 1, Side::Backup, 1), Verdict::Won);
    assert_eq!(verdict(&mut disk, 1, Side::Primary, 2), lost(1, Side::Backup, 1));
    assert_eq!(verdict(&mut open(&memory), 1, Side::Backup, 1), Verdict::Won, "claimed again");
    assert_eq!(verdict(&mut open(&memory), 1, Side::Backup, 3), lost(1, Side::Backup, 1), "restarted");
    assert_eq!(disk.show().expect("shows").claims, [claim_of(1, Side::Backup, 1)]);
}

#[test]
fn claiming_what_is_decided_writes_nothing() {
    let (memory, mut disk) = init();
    assert_eq!(verdict(&mut disk, 1, Side::Backup, 1), Verdict::Won);
    let writes = memory.0.borrow().writes;
    assert_eq!(verdict(&mut disk, 1, Side::Primary, 2), lost(1, Side::Backup, 1));
    assert_eq!(verdict(&mut disk, 1, Side::Backup, 1), Verdict::Won);
    assert_eq!(memory.0.borrow().writes, writes);
}

#[test]
fn generations_wrap_around_and_the_old_are_superseded() {
    let (_, mut disk) = init();
    for generation in 1..=100 {
        assert_eq!(verdict(&mut disk, generation, Side::Primary, 1), Verdict::Won);
        for stale in [1, generation - 1].into_iter().filter(|stale| (1..generation).contains(stale)) {
            let expected = Verdict::Superseded { by: generation };
            assert_eq!(verdict(&mut disk, stale, Side::Backup, 2), expected);
            assert_eq!(verdict(&mut disk, stale, Side::Primary, 1), expected);
        }
    }
    let kept: Vec<_> = disk.show().expect("shows").claims.iter().map(|claim| claim.generation).collect();
    assert_eq!(kept, (85..=100).collect::<Vec<_>>());
}

#[test]
fn a_generation_may_be_skipped() {
    let (_, mut disk) = init();
    assert_eq!(verdict(&mut disk, 5, Side::Primary, 1), Verdict::Won);
    assert_eq!(verdict(&mut disk, u64::MAX, Side::Primary, 1), Verdict::Won);
    assert_eq!(verdict(&mut disk, 6, Side::Backup, 2), Verdict::Superseded { by: u64::MAX });
}

#[test]
fn an_ambiguous_error_is_settled_by_reading_back() {
    for fault in [Fault::ErrorAfter, Fault::ErrorBefore] {
        for write in 0..4 {
            let (memory, mut disk) = init();
            memory.fail(write, fault);
            assert_eq!(verdict(&mut disk, 1, Side::Backup, 1), Verdict::Won, "{fault:?} at write {write}");
            assert_eq!(verdict(&mut disk, 1, Side::Primary, 2), lost(1, Side::Backup, 1));
        }
    }
}

#[test]
fn a_device_that_takes_no_writes_is_unreachable() {
    #[derive(Debug)]
    struct ReadOnly(Memory);
    impl Medium for ReadOnly {
        fn sector_size(&self) -> usize {
            512
        }
        fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read(buffer, offset)
        }
        fn write(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(eio())
        }
        fn ends_at(&self, length: u64) -> io::Result<bool> {
            self.0.ends_at(length)
        }
        fn grow(&mut self, _: u64) -> io::Result<bool> {
            Ok(false)
        }
    }
    let (memory, _) = init();
    let mut disk = Disk::open(Path::new("memory"), ReadOnly(memory)).expect("opens");
    let mut wait = |_: Duration| {};
    let error =
        disk.claim(claim_of(1, Side::Primary, 1), 1, Backoff::new(1, &mut wait)).expect_err("no verdict");
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error}");
}

/// A device on which the backup promises a higher ballot after each write of the primary.
#[derive(Debug)]
struct Rivalry(Memory);

impl Medium for Rivalry {
    fn sector_size(&self) -> usize {
        self.0.sector_size()
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read(buffer, offset)
    }
    fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.0.write(buffer, offset)?;
        let geometry = Geometry::of(&header()).expect("in range");
        let place = geometry.place(Side::Backup, 0, 1);
        let round = self.0.0.borrow().writes as u64;
        let promised = Ballot { round, side: Side::Backup, incarnation: 0 };
        let cell = Cell { vm: VM, content: Some((1, Block { promised, accepted: None })) };
        self.0.write(&cell.encode(place as u32), (RING_AT + geometry.at(place)) as u64)
    }
    fn ends_at(&self, length: u64) -> io::Result<bool> {
        self.0.ends_at(length)
    }
    fn grow(&mut self, length: u64) -> io::Result<bool> {
        self.0.grow(length)
    }
}

#[test]
fn contention_without_end_is_told() {
    let (memory, _) = init();
    let mut disk = Disk::open(Path::new("memory"), Rivalry(memory.clone())).expect("opens");
    let mut waits = 0;
    let mut wait = |_: Duration| waits += 1;
    let verdict = disk.claim(claim_of(1, Side::Primary, 1), 1, Backoff::new(1, &mut wait));
    assert!(matches!(verdict, Ok(Verdict::Contended { .. })), "{verdict:?}");
    assert!(waits > 8, "{waits}");
    assert_eq!(self::verdict(&mut open(&memory), 1, Side::Primary, 1), Verdict::Won, "the rival is gone");
}

#[test]
fn one_rotten_sector_changes_nothing_and_two_are_told() {
    for side in Side::ALL {
        let (memory, mut disk) = init();
        assert_eq!(verdict(&mut disk, 3, Side::Backup, 1), Verdict::Won);
        let geometry = disk.geometry;
        let at = |copy| RING_AT + geometry.at(geometry.place(side, copy, 3)) + 60;
        memory.flip(at(0));
        assert_eq!(verdict(&mut disk, 3, Side::Primary, 2), lost(3, Side::Backup, 1));
        assert_eq!(verdict(&mut disk, 3, Side::Backup, 1), Verdict::Won);

        let (memory, mut disk) = init();
        assert_eq!(verdict(&mut disk, 3, Side::Backup, 1), Verdict::Won);
        memory.flip(at(0));
        memory.flip(at(1));
        assert_eq!(disk.show().expect("shows").damage.len(), 2);
        let error = claim(&mut disk, 3, Side::Primary, 2).expect_err("damaged");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("both sectors of the {side} in generation 3")),
            "{error}"
        );
    }
}

#[test]
fn the_header_has_two_copies() {
    let (memory, _) = init();
    memory.flip(20);
    assert_eq!(open(&memory).vm(), VM);
    memory.flip(REGION_ALIGN + 20);
    let error = Disk::open(Path::new("memory"), memory).expect_err("no header");
    assert!(matches!(error, Error::NotInitialised { defect: Defect::Checksum, .. }), "{error}");
}

#[test]
fn init_erases_nothing_unasked() {
    let (memory, mut disk) = init();
    assert_eq!(verdict(&mut disk, 1, Side::Backup, 1), Verdict::Won);
    let again = |overwrite| Disk::init(Path::new("memory"), memory.clone(), header(), overwrite);
    assert!(matches!(again(false), Err(Error::AlreadyInitialised { vm: VM, .. })));
    assert_eq!(verdict(&mut again(true).expect("overwrites"), 1, Side::Primary, 2), Verdict::Won);

    // An ext4 file system leaves its first kilobyte blank; a short text is not blank either.
    for (length, at) in [(1 << 20, 1080), (100, 0), (40_000, 36_000)] {
        let memory = Memory::default();
        memory.0.borrow_mut().bytes.resize(length, 0);
        memory.flip(at);
        let error = Disk::init(Path::new("memory"), memory, header(), false).expect_err("not empty");
        assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
    }
}

#[test]
fn an_interrupted_init_leaves_no_arbiter() {
    for write in 0..3 {
        let (memory, mut disk) = init();
        assert_eq!(verdict(&mut disk, 1, Side::Backup, 1), Verdict::Won);
        memory.fail(write, Fault::Cut(0));
        assert!(Disk::init(Path::new("memory"), memory.clone(), header(), true).is_err());
        memory.revive();
        match Disk::open(Path::new("memory"), memory.clone()) {
            // Cut before its first write: the old arbiter, whole.
            Ok(mut old) => assert_eq!((write, verdict(&mut old, 1, Side::Backup, 1)), (0, Verdict::Won)),
            Err(error) => assert!(matches!(error, Error::NotInitialised { .. }), "{error}"),
        }
    }
}

#[test]
fn geometry_out_of_range_is_refused() {
    for (sector_size, slots) in
        [(0, 16), (1024, 16), (8192, 16), (512, 0), (512, 1), (512, 257), (u32::MAX, u32::MAX)]
    {
        let header = Header { vm: VM, sector_size, slots };
        let error = Disk::init(Path::new("memory"), Memory::default(), header, false).expect_err("refused");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

#[test]
fn regions_do_not_share_a_physical_block() {
    for (sector_size, slots) in [(512, 2), (512, 16), (512, 17), (4096, 16), (4096, 256)] {
        let geometry = Geometry { sector_size, slots };
        let mut last_end = 0;
        for place in geometry.places() {
            let at = geometry.at(place);
            assert!(at >= last_end && at + sector_size <= geometry.ring_len());
            assert!(place % slots != 0 || at.is_multiple_of(REGION_ALIGN));
            last_end = at + sector_size;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Power fails within any write of a first claim, then within any write of a second; whoever claims
    /// afterwards gets one and the same answer, and nobody who was answered before is contradicted.
    #[test]
    fn torn_writes_at_any_byte_never_make_two_winners(
        first_backup: bool, same_side: bool,
        cuts in proptest::collection::vec((0usize..5, 0usize..=512), 2),
    ) {
        let side = |backup| if backup { Side::Backup } else { Side::Primary };
        let sides = [side(first_backup), side(first_backup == same_side)];
        let (memory, _) = init();
        let mut decided = None;
        for (token, (side, (write, cut))) in (1..).zip(sides.into_iter().zip(cuts)) {
            let mut disk = open(&memory);
            memory.fail(write, Fault::Cut(cut));
            if let Ok(verdict) = claim(&mut disk, 1, side, token) {
                decided = match verdict {
                    Verdict::Won => Some(claim_of(1, side, token)),
                    Verdict::Lost { winner } => Some(winner),
                    other => panic!("{other}"),
                };
            }
            memory.revive();
        }
        for (token, side) in (10..).zip([Side::Primary, Side::Backup, Side::Primary]) {
            let winner = match verdict(&mut open(&memory), 1, side, token) {
                Verdict::Won => claim_of(1, side, token),
                Verdict::Lost { winner } => winner,
                other => panic!("{other}"),
            };
            prop_assert_eq!(*decided.get_or_insert(winner), winner);
        }
    }
}
