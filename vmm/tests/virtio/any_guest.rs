//! A guest that does anything, at random: never a panic, and two machines stay the same.

use crate::driver::*;
use proptest::prelude::*;
use tandem_vmm::machine::cpu::exit::Exit;
use tandem_vmm::machine::input::DiskStatus;
use tandem_vmm::machine::time::VirtualTime;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::blk::Blk;
use tandem_vmm::machine::virtio::console::Console;
use tandem_vmm::machine::virtio::net::{Net, RxOutcome};
use tandem_vmm::machine::virtio::rng::Rng;

const BUFFERS: u64 = 0x4_0000;

fn device(kind: u8) -> VirtioDevice {
    match kind % 4 {
        0 => VirtioDevice::Net(Net::new(0, [2; 6])),
        1 => VirtioDevice::Blk(Blk::new(0, 1 << 20, false, [b'd'; 20])),
        2 => VirtioDevice::Rng(Rng::new([9; 32])),
        _ => VirtioDevice::Console(Console::new()),
    }
}

/// One thing a guest or the host does.
#[derive(Clone, Debug)]
enum Step {
    Register {
        offset: u64,
        value: u32,
    },
    Access {
        offset: u64,
        data: Vec<u8>,
    },
    Kick(u32),
    /// A good chain, offered: readable buffers first.
    Chain {
        queue: u32,
        buffers: Vec<Buffer>,
        kick: bool,
    },
    /// A good disk request, offered.
    Disk {
        kind: u32,
        sector: u64,
        len: u32,
        kick: bool,
    },
    /// A descriptor with mostly plausible fields.
    Descriptor {
        queue: u32,
        n: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    Offer {
        queue: u32,
        head: u16,
    },
    AvailIndex {
        queue: u32,
        by: u16,
    },
    Poke {
        address: u64,
        bytes: Vec<u8>,
    },
    /// A packet for a network device: its header, and how long the frame is.
    Receive([u8; 10], usize),
    Complete {
        pick: usize,
        ok: bool,
        length: Option<usize>,
    },
    Type(usize),
    /// So many exits of another kind, so many nanoseconds from each other.
    Exits(usize, u64),
    ForcedStop,
    Revive,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => BUFFERS..BUFFERS + 0x4_0000,
        2 => 0x1_0000u64..0x1_8000,
        1 => RAM_SIZE - 0x2000..RAM_SIZE + 0x1000,
        1 => any::<u64>(),
        1 => 0xcfff_f000u64..0x1_0000_1000,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => 1u32..2000,
        3 => Just(16u32),
        3 => Just(512u32),
        2 => Just(1u32),
        2 => (1u32..64).prop_map(|n| n * 16),
        1 => Just(0u32),
        1 => any::<u32>(),
    ]
}

/// A frame that is complete, one without its checksum, a long segment, and anything.
fn header() -> impl Strategy<Value = [u8; 10]> {
    prop_oneof![
        4 => Just([0; 10]),
        1 => Just([1, 0, 0, 0, 0, 0, 34, 0, 16, 0]),
        1 => Just([1, 1, 54, 0, 100, 0, 34, 0, 16, 0]),
        1 => any::<[u8; 10]>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0u32..2;
    prop_oneof![
        1 => (0u64..0x120, prop_oneof![any::<u32>(), 0u32..16]).prop_map(|(offset, value)| Step::Register {
            offset: offset & !3,
            value,
        }),
        1 => (0u64..0x130, proptest::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, data)| Step::Access { offset, data }),
        3 => (0u32..3).prop_map(Step::Kick),
        20 => (queue.clone(), proptest::collection::vec((BUFFERS..BUFFERS + 0x4_0000, 1u32..2000, any::<bool>()), 1..4),
               0u8..4, any::<bool>())
            .prop_map(|(queue, mut buffers, same, kick)| {
                // Mostly what the queue is for: all writable in the first, all readable in the second.
                if same > 0 {
                    buffers.iter_mut().for_each(|buffer| buffer.2 = queue == 0);
                }
                buffers.sort_by_key(|buffer| buffer.2);
                Step::Chain { queue, buffers, kick }
            }),
        8 => (prop_oneof![0u32..2, Just(4), Just(8), any::<u32>()], prop_oneof![9 => 0u64..1 << 20, 1 => any::<u64>()],
              (0u32..20).prop_map(|n| n * 512), any::<bool>())
            .prop_map(|(kind, sector, len, kick)| Step::Disk { kind, sector, len, kick }),
        2 => (queue.clone(), 0u16..9, address(), length(), prop_oneof![8 => 0u16..4, 1 => 0u16..8, 1 => any::<u16>()],
               prop_oneof![8 => 0u16..8, 1 => any::<u16>()])
            .prop_map(|(queue, n, address, len, flags, next)| Step::Descriptor { queue, n, address, len, flags, next }),
        2 => (queue.clone(), prop_oneof![12 => 0u16..8, 1 => any::<u16>()])
            .prop_map(|(queue, head)| Step::Offer { queue, head }),
        1 => (queue, prop_oneof![0u16..10, any::<u16>()]).prop_map(|(queue, by)| Step::AvailIndex { queue, by }),
        2 => (address(), proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(address, bytes)| Step::Poke { address, bytes }),
        8 => (header(), prop_oneof![0usize..300, 0usize..4000]).prop_map(|(header, len)| Step::Receive(header, len)),
        8 => (any::<usize>(), any::<bool>(), proptest::option::weighted(0.1, 0usize..2000))
            .prop_map(|(pick, ok, length)| Step::Complete { pick, ok, length }),
        4 => (0usize..200).prop_map(Step::Type),
        4 => (1usize..40, 0u64..1_000_000).prop_map(|(count, gap)| Step::Exits(count, gap)),
        1 => Just(Step::ForcedStop),
        4 => Just(Step::Revive),
    ]
}

/// A machine under a guest that does anything.
struct Fuzzed {
    rig: Rig,
    rings: [Ring; 2],
    features: u64,
    now: u64,
}

impl Fuzzed {
    fn new(kind: u8, features: u64) -> Self {
        let features = features | VERSION_1;
        let mut fuzzed =
            Self { rig: Rig::new(device(kind)), rings: [Ring::at(0, 8), Ring::at(1, 8)], features, now: 0 };
        fuzzed.revive();
        fuzzed
    }

    /// A driver that resets the device and starts over.
    fn revive(&mut self) {
        self.rig.set(STATUS, 0);
        self.rings = [Ring::at(0, 8), Ring::at(1, 8)];
        self.rig.set(DEVICE_FEATURES_SEL, 0);
        let offered = u64::from(self.rig.get(DEVICE_FEATURES)) | VERSION_1;
        self.rig.negotiate(self.features & offered);
        for ring in self.rings.clone() {
            self.rig.put(ring.avail, &[0; 64]);
            self.rig.put(ring.used, &[0; 128]);
            self.rig.enable(&ring);
        }
        self.rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    }

    fn apply(&mut self, step: &Step) {
        let rig = &mut self.rig;
        match *step {
            Step::Register { offset, value } => rig.set(offset, value),
            Step::Access { offset, ref data } => {
                rig.write(offset, data);
                rig.device.read(offset, &mut vec![0; data.len()]);
            }
            Step::Kick(queue) => {
                let address = rig.device.address() + QUEUE_NOTIFY;
                let exit = Exit::MmioWrite { address, size: 4, data: queue.into() };
                rig.device.exited(VirtualTime::from_nanos(self.now), &exit);
                rig.set(QUEUE_NOTIFY, queue);
            }
            // To a disk, a chain without a readable header is an error: not too often.
            Step::Chain { queue: 0, ref buffers, .. } if rig.device.blk().is_some() && buffers[0].2 => {}
            Step::Chain { queue, ref buffers, kick } => {
                self.rings[queue as usize].add(rig.mem(), buffers);
                if kick {
                    rig.set(QUEUE_NOTIFY, queue);
                }
            }
            Step::Disk { kind, sector, len, kick } => {
                let mut header = [0; 16];
                header[..4].copy_from_slice(&kind.to_le_bytes());
                header[8..].copy_from_slice(&sector.to_le_bytes());
                rig.put(BUFFERS, &header);
                let mut buffers = vec![(BUFFERS, 16, false), (BUFFERS + 0x1_0000, len, kind != 1)];
                buffers.retain(|buffer| buffer.1 > 0);
                buffers.push((BUFFERS + 0x2_0000, 1, true));
                self.rings[0].add(rig.mem(), &buffers);
                if kick {
                    rig.set(QUEUE_NOTIFY, 0);
                }
            }
            Step::Descriptor { queue, n, address, len, flags, next } => {
                self.rings[queue as usize].descriptor(rig.mem(), n, address, len, flags, next);
            }
            Step::Offer { queue, head } => self.rings[queue as usize].offer(rig.mem(), head),
            Step::AvailIndex { queue, by } => {
                let ring = &mut self.rings[queue as usize];
                ring.avail_idx = ring.avail_idx.wrapping_add(by);
                rig.put(ring.avail + 2, &ring.avail_idx.to_le_bytes());
            }
            Step::Poke { address, ref bytes } => {
                // A guest cannot write where there is no memory.
                use vm_memory::{Bytes, GuestAddress};
                let _ = rig.mem().write_slice(bytes, GuestAddress(address));
            }
            Step::Receive(header, len) => {
                let sent = packet(header, &vec![len as u8; len]);
                let expected = rig.device.can_receive(&sent, rig.mem());
                let outcome = rig.device.receive(&sent, rig.ram.memory());
                if outcome == RxOutcome::Delivered {
                    assert!(expected);
                }
            }
            Step::Complete { pick, ok, length } => {
                let Some(blk) = rig.device.blk() else { return };
                let in_flight: Vec<_> = blk.in_flight().map(Out::from).collect();
                let (tag, len) = match in_flight.get(pick % in_flight.len().max(1)) {
                    Some(&Out::Read { tag, len, .. }) => (tag, if ok { len as usize } else { 0 }),
                    Some(&(Out::Write { tag, .. } | Out::Flush { tag })) => (tag, 0),
                    _ => (pick as u64, 0),
                };
                let status = if ok { DiskStatus::Ok } else { DiskStatus::IoError };
                let data = vec![pick as u8; length.unwrap_or(len)];
                let result = rig.complete(tag, status, &data);
                let fits = !in_flight.is_empty() && data.len() == len;
                assert_eq!(result.is_ok(), fits);
            }
            Step::Type(len) => {
                rig.type_in(&vec![b'k'; len]);
            }
            Step::Exits(count, gap) => {
                for _ in 0..count {
                    self.now += gap;
                    rig.device.exited(VirtualTime::from_nanos(self.now), &Exit::Halt);
                    rig.device.look(rig.ram.memory(), &mut rig.out);
                }
            }
            Step::ForcedStop => {
                rig.device.forced_stop(VirtualTime::from_nanos(self.now));
                rig.device.look(rig.ram.memory(), &mut rig.out);
            }
            Step::Revive => self.revive(),
        }
        // A device that found a fault says so, and never without a cause.
        assert_eq!(self.rig.needs_reset(), self.rig.device.fault().is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever a guest does, nothing panics, and two machines that are given the same are the same.
    #[test]
    fn any_guest_is_survived_and_two_machines_stay_equal(
        kind in 0u8..4,
        features in prop_oneof![Just(0), Just(EVENT_IDX), Just(INDIRECT), Just(EVENT_IDX | INDIRECT | MRG_RXBUF),
            // All of it, with checksums and TCP segmentation both ways.
            Just(EVENT_IDX | INDIRECT | MRG_RXBUF | 0x3b83)],
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut primary = Fuzzed::new(kind, features);
        let mut backup = Fuzzed::new(kind, features);
        for step in &steps {
            primary.apply(step);
            backup.apply(step);
            prop_assert_eq!(primary.rig.state_hash(), backup.rig.state_hash());
            prop_assert_eq!(primary.rig.device.interrupt(), backup.rig.device.interrupt());
        }
        prop_assert_eq!(&primary.rig.out, &backup.rig.out);
        prop_assert_eq!(primary.rig.device.state(), backup.rig.device.state());
        prop_assert_eq!(primary.rig.memory_hash(), backup.rig.memory_hash());
    }

    /// Rings and descriptor table filled with noise.
    #[test]
    fn noise_in_the_rings_is_survived(
        kind in 0u8..4,
        noise in proptest::collection::vec(any::<u8>(), 128),
        avail in proptest::collection::vec(any::<u8>(), 22),
        few in 0u8..9,
        mask in prop_oneof![Just(0xffu8), Just(0x0f), Just(0x07)],
    ) {
        let run = || {
            let mut f = Fuzzed::new(kind, EVENT_IDX | INDIRECT);
            for ring in f.rings.clone() {
                let mut table = noise.clone();
                for descriptor in table.chunks_mut(16) {
                    // Keep addresses in memory often enough to get further.
                    if mask != 0xff {
                        descriptor[2] &= mask;
                        descriptor[3..8].fill(0);
                        descriptor[9..12].fill(0);
                        descriptor[12] &= 7;
                        descriptor[13] = 0;
                        descriptor[14] &= 7;
                        descriptor[15] = 0;
                    }
                }
                f.rig.put(ring.desc, &table);
                let mut avail = avail.clone();
                if mask != 0xff {
                    avail[2..4].copy_from_slice(&[few, 0]);
                    for head in avail[4..20].chunks_mut(2) {
                        head.copy_from_slice(&[head[0] & 7, 0]);
                    }
                }
                f.rig.put(ring.avail, &avail);
            }
            for step in [Step::Kick(0), Step::Kick(1), Step::Receive([0; 10], 60), Step::Receive([0; 10], 1514), Step::Type(5)] {
                f.apply(&step);
            }
            (f.rig.state_hash(), f.rig.memory_hash(), f.rig.take_outputs())
        };
        prop_assert_eq!(run(), run());
    }
}
