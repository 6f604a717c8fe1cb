//! A driver that notifies as it is asked to, whose transmit queue is looked at by itself while its exits are dense: no packet is
//! forgotten.

use crate::driver::*;
use proptest::prelude::*;
use tandem_vmm::machine::cpu::exit::Exit;
use tandem_vmm::machine::time::VirtualTime;
use tandem_vmm::machine::virtio::net::Net;
use tandem_vmm::machine::virtio::{VirtioDevice, slot_address};
use vm_memory::{Bytes, GuestAddress};

const BUFFERS: u64 = 0x4_0000;

/// Entries in each ring.
const RING: u16 = 64;

/// Exits so near to each other that answers need not be notified of, in nanoseconds.
const DENSE: u64 = 50_000;

/// Linux's virtio-net, as far as it sends.
struct Sender {
    rig: Rig,
    rx: Ring,
    tx: Ring,
    event_idx: bool,
    now: u64,
    sent: u64,
    /// Notifications, each an exit.
    notifications: u64,
}

impl Sender {
    fn new(features: u64) -> Self {
        let (rx, tx) = (Ring::at(0, RING), Ring::at(1, RING));
        let rig = Rig::running(VirtioDevice::Net(Net::new(0, [2; 6])), features, &[rx.clone(), tx.clone()]);
        Self { rig, rx, tx, event_idx: features & EVENT_IDX != 0, now: 0, sent: 0, notifications: 0 }
    }

    /// A driver starts over with the device.
    fn reset(&mut self) {
        self.rig.set(STATUS, 0);
        (self.rx, self.tx) = (Ring::at(0, RING), Ring::at(1, RING));
        for ring in [&self.rx, &self.tx] {
            self.rig.put(ring.avail, &[0; 0x400]);
            self.rig.put(ring.used, &[0; 0x400]);
        }
        self.rig.negotiate(VERSION_1 | if self.event_idx { EVENT_IDX } else { 0 });
        self.rig.enable(&self.rx);
        self.rig.enable(&self.tx);
        self.rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    }

    fn time(&self) -> VirtualTime {
        VirtualTime::from_nanos(self.now)
    }

    /// A packet, and a notification of it if the device wants one (section 2.7.13). A driver whose ring is full has others
    /// wait, and does other things.
    fn send(&mut self) {
        if self.tx.avail_idx.wrapping_sub(self.used()) == RING {
            self.exit();
        }
        let before = self.tx.avail_idx;
        let buffer = BUFFERS + 0x100 * u64::from(before % RING);
        self.rig.put(buffer + 12, &self.sent.to_le_bytes());
        self.tx.add(self.rig.mem(), &[(buffer, 80, false)]);
        self.sent += 1;
        let wanted = if self.event_idx {
            let event = self.tx.avail_event(self.rig.mem());
            self.tx.avail_idx.wrapping_sub(event).wrapping_sub(1) < self.tx.avail_idx.wrapping_sub(before)
        } else {
            self.tx.kick_wanted(self.rig.mem())
        };
        if wanted {
            self.notifications += 1;
            let exit = Exit::MmioWrite { address: slot_address(0) + QUEUE_NOTIFY, size: 4, data: 1 };
            self.rig.device.exited(self.time(), &exit);
            self.rig.set(QUEUE_NOTIFY, 1);
            self.all_has_left();
        } else {
            assert!(self.rig.device.holds_packets(self.rig.mem()), "nobody looks for it");
        }
    }

    /// An exit of another kind.
    fn exit(&mut self) {
        self.rig.device.exited(self.time(), &Exit::Halt);
        self.rig.device.look(self.rig.ram.memory(), &mut self.rig.out);
        self.all_has_left();
    }

    fn forced_stop(&mut self) {
        self.rig.device.forced_stop(self.time());
        self.rig.device.look(self.rig.ram.memory(), &mut self.rig.out);
        self.all_has_left();
    }

    /// Packets that the device has given back.
    fn used(&self) -> u16 {
        self.rig.mem().read_obj(GuestAddress(self.tx.used + 2)).unwrap()
    }

    fn all_has_left(&mut self) {
        assert_eq!(self.used(), self.tx.avail_idx);
        assert!(!self.rig.device.holds_packets(self.rig.mem()) && !self.rig.needs_reset());
    }

    /// So many exits of another kind, each `gap` after the last, and a packet behind each.
    fn work(&mut self, exits: usize, gap: u64) {
        for _ in 0..exits {
            self.now += gap;
            self.exit();
            self.send();
        }
    }
}

/// The numbers in what left, in order.
fn numbers(out: &[Out]) -> Vec<u64> {
    out.iter()
        .map(|out| match out {
            Out::Packet(0, frame) => u64::from_le_bytes(*frame.first_chunk().unwrap()),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn notifications_stop_while_exits_are_dense_and_come_back() {
    for features in [0, EVENT_IDX] {
        let mut sender = Sender::new(features);
        sender.work(1000, DENSE);
        let few = sender.notifications;
        assert!(few < 100, "{few}");
        sender.forced_stop();
        sender.work(10, DENSE);
        assert_eq!(sender.notifications, few + 10, "after a forced stop");
        sender.work(1000, DENSE);
        let few = sender.notifications;
        assert!(few < 200, "{few}");
        sender.work(1000, 100 * DENSE);
        assert!(sender.notifications > few + 900, "exits are no longer dense");
        let sent = sender.sent;
        assert_eq!(numbers(&sender.rig.take_outputs()), (0..sent).collect::<Vec<_>>());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Work { exits: usize, gap: u64 },
    Send(usize),
    Exits { count: usize, gap: u64 },
    Wait(u64),
    ForcedStop,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let gap = prop_oneof![5 => Just(DENSE), 1 => 0u64..1_000_000, 1 => Just(2_000_000)];
    prop_oneof![
        6 => (1usize..100, gap.clone()).prop_map(|(exits, gap)| Step::Work { exits, gap }),
        3 => (1usize..20).prop_map(Step::Send),
        2 => (1usize..100, gap).prop_map(|(count, gap)| Step::Exits { count, gap }),
        1 => (0u64..10_000_000).prop_map(Step::Wait),
        2 => Just(Step::ForcedStop),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    /// Whenever a driver is not asked to notify, the device has not forgotten what it holds.
    #[test]
    fn every_packet_leaves_once_and_in_order(
        event_idx in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut sender = Sender::new(if event_idx { EVENT_IDX } else { 0 });
        for step in steps {
            match step {
                Step::Work { exits, gap } => sender.work(exits, gap),
                Step::Send(count) => (0..count).for_each(|_| sender.send()),
                Step::Exits { count, gap } => for _ in 0..count {
                    sender.now += gap;
                    sender.exit();
                },
                Step::Wait(long) => {
                    sender.exit();
                    sender.now += long;
                    sender.rig.device.wakes(sender.time());
                }
                Step::ForcedStop => sender.forced_stop(),
                Step::Reset => {
                    sender.exit();
                    sender.reset();
                }
            }
        }
        sender.exit();
        let sent = sender.sent;
        prop_assert_eq!(numbers(&sender.rig.take_outputs()), (0..sent).collect::<Vec<_>>());
    }
}
