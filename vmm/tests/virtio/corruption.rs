//! A guest that breaks its queues, one way at a time: the device says which, and waits for its reset.

use crate::driver::*;
use tandem_vmm::machine::memory::GuestRam;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::net::{Net, RxOutcome};
use tandem_vmm::machine::virtio::queue::QueueError;

const BUFFERS: u64 = 0x4_0000;

fn nic() -> VirtioDevice {
    VirtioDevice::Net(Net::new(0, [2; 6]))
}

/// Breaks the transmit queue of a network device in one way and says how the device sees it.
fn broken(features: u64, break_it: impl Fn(&Rig, &mut Ring)) -> (Rig, Ring, Option<QueueError>) {
    let mut tx = Ring::at(1, 8);
    let mut rig = Rig::running(nic(), features, std::slice::from_ref(&tx));
    break_it(&rig, &mut tx);
    rig.kick(&tx);
    let fault = rig.device.fault();
    assert_eq!(fault.is_some(), rig.needs_reset());
    (rig, tx, fault)
}

#[test]
fn every_kind_of_corruption_is_named() {
    type Break = fn(&Rig, &mut Ring);
    let cases: [(&str, u64, Break, QueueError); 20] = [
        (
            "head beyond the table",
            0,
            |rig, tx| tx.offer(rig.mem(), 8),
            QueueError::DescriptorIndex { index: 8, table_len: 8 },
        ),
        (
            "next beyond the table",
            0,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, BUFFERS, 80, NEXT, 0xffff);
                tx.offer(rig.mem(), 0);
            },
            QueueError::DescriptorIndex { index: 0xffff, table_len: 8 },
        ),
        (
            "a chain that is its own successor",
            0,
            |rig, tx| {
                tx.descriptor(rig.mem(), 3, BUFFERS, 80, NEXT, 3);
                tx.offer(rig.mem(), 3);
            },
            QueueError::ChainTooLong { head: 3 },
        ),
        (
            "a loop over two descriptors",
            0,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, BUFFERS, 80, NEXT, 1);
                tx.descriptor(rig.mem(), 1, BUFFERS, 80, NEXT, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::ChainTooLong { head: 0 },
        ),
        (
            "length zero",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(BUFFERS, 80, false), (BUFFERS, 0, false)]);
            },
            QueueError::ZeroLength { head: 0 },
        ),
        (
            "beyond memory",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(RAM_SIZE, 80, false)]);
            },
            QueueError::BufferOutsideRam { address: RAM_SIZE, len: 80 },
        ),
        (
            "across the end of memory",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(RAM_SIZE - 79, 80, false)]);
            },
            QueueError::BufferOutsideRam { address: RAM_SIZE - 79, len: 80 },
        ),
        (
            "across the end of the address space",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(u64::MAX - 10, 80, false)]);
            },
            QueueError::BufferOutsideRam { address: u64::MAX - 10, len: 80 },
        ),
        (
            "in the device window",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(0xd000_0000, 80, false)]);
            },
            QueueError::BufferOutsideRam { address: 0xd000_0000, len: 80 },
        ),
        (
            "longer than memory",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(0, u32::MAX, false)]);
            },
            QueueError::BufferOutsideRam { address: 0, len: u32::MAX },
        ),
        (
            "readable after writable",
            0,
            |rig, tx| {
                tx.add(rig.mem(), &[(BUFFERS, 80, true), (BUFFERS, 80, false)]);
            },
            QueueError::ReadableAfterWritable { head: 0 },
        ),
        (
            "available index one too far",
            0,
            |rig, tx| rig.put(tx.avail + 2, &[9, 0]),
            QueueError::AvailableIndex { index: 9, next: 0 },
        ),
        (
            "available index behind",
            0,
            |rig, tx| rig.put(tx.avail + 2, &[0xff, 0xff]),
            QueueError::AvailableIndex { index: 0xffff, next: 0 },
        ),
        (
            "indirect, not negotiated",
            0,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, BUFFERS, 16, INDIRECT_TABLE, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::IndirectNotAllowed { head: 0 },
        ),
        (
            "indirect with a successor",
            INDIRECT,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, BUFFERS, 16, INDIRECT_TABLE | NEXT, 1);
                tx.offer(rig.mem(), 0);
            },
            QueueError::IndirectNotAllowed { head: 0 },
        ),
        (
            "indirect in indirect",
            INDIRECT,
            |rig, tx| {
                write_descriptor(rig.mem(), BUFFERS, BUFFERS, 16, INDIRECT_TABLE, 0);
                tx.descriptor(rig.mem(), 0, BUFFERS, 16, INDIRECT_TABLE, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::IndirectNotAllowed { head: 0 },
        ),
        (
            "an empty indirect table",
            INDIRECT,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, BUFFERS, 0, INDIRECT_TABLE, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::IndirectTable { head: 0 },
        ),
        (
            "an indirect table of one and a half descriptors",
            INDIRECT,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, BUFFERS, 24, INDIRECT_TABLE, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::IndirectTable { head: 0 },
        ),
        (
            "an indirect table outside memory",
            INDIRECT,
            |rig, tx| {
                tx.descriptor(rig.mem(), 0, RAM_SIZE - 16, 32, INDIRECT_TABLE, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::IndirectTable { head: 0 },
        ),
        (
            "a loop in an indirect table",
            INDIRECT,
            |rig, tx| {
                write_descriptor(rig.mem(), BUFFERS, BUFFERS, 80, NEXT, 0);
                tx.descriptor(rig.mem(), 0, BUFFERS, 0x1_0000, INDIRECT_TABLE, 0);
                tx.offer(rig.mem(), 0);
            },
            QueueError::ChainTooLong { head: 0 },
        ),
    ];
    for (what, features, break_it, expected) in cases {
        let (mut rig, mut tx, fault) = broken(features, break_it);
        assert_eq!(fault, Some(expected), "{what}");
        assert_eq!(rig.get(INTERRUPT_STATUS), 2, "{what}: a configuration interrupt");
        // Until it is reset, the device leaves its queues alone.
        tx.avail_idx = 0;
        tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
        let before = (rig.state_hash(), rig.memory_hash());
        rig.kick(&tx);
        assert_eq!(rig.receive(&[0; 60]), RxOutcome::DeviceDown, "{what}");
        assert_eq!((rig.state_hash(), rig.memory_hash()), before, "{what}");
        assert!(rig.take_outputs().is_empty(), "{what}");
        // And after a reset it works again.
        rig.set(STATUS, 0);
        assert!(!rig.needs_reset() && !rig.device.interrupt());
        for at in (0..0x4000).step_by(0x1000) {
            rig.put(tx.desc + at, &[0; 0x200]);
        }
        let mut tx = Ring::at(1, 8);
        rig.negotiate(VERSION_1);
        rig.enable(&tx);
        rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
        tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
        rig.kick(&tx);
        assert_eq!(rig.take_outputs().len(), 1, "{what}");
    }
}

#[test]
fn a_chain_of_4_gib_is_too_large() {
    // Buffers may overlap: 64 times all of memory is one byte more than a chain may have.
    let mut tx = Ring::at(1, 256);
    let mut rig = Rig::new(nic());
    rig.ram = GuestRam::new(64 << 20).unwrap();
    rig.negotiate(VERSION_1);
    rig.enable(&tx);
    rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    tx.add(rig.mem(), &[(0, 64 << 20, false); 64]);
    rig.kick(&tx);
    assert_eq!(rig.device.fault(), Some(QueueError::ChainTooLarge { head: 0 }));
}

#[test]
fn an_indirect_chain_may_be_as_long_as_the_queue_and_no_longer() {
    for (buffers, fault) in [(8, None), (9, Some(QueueError::ChainTooLong { head: 0 }))] {
        let mut tx = Ring::at(1, 8);
        let mut rig = Rig::running(nic(), INDIRECT, std::slice::from_ref(&tx));
        for n in 0..buffers {
            let flags = if n + 1 < buffers { NEXT } else { 0 };
            write_descriptor(rig.mem(), BUFFERS + u64::from(n) * 16, BUFFERS + 0x1000, 20, flags, n + 1);
        }
        tx.descriptor(rig.mem(), 0, BUFFERS, 16 * u32::from(buffers), INDIRECT_TABLE, 0);
        tx.offer(rig.mem(), 0);
        rig.kick(&tx);
        assert_eq!(rig.device.fault(), fault, "{buffers}");
        assert_eq!(rig.take_outputs().len(), usize::from(fault.is_none()));
    }
}

#[test]
fn corruption_before_the_driver_is_ready_is_found_when_it_is() {
    let mut rx = Ring::at(0, 8);
    let mut rig = Rig::new(nic());
    rig.negotiate(VERSION_1);
    rig.enable(&rx);
    rx.avail_idx = 100;
    rx.offer(rig.mem(), 0);
    rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    assert!(rig.needs_reset());
    assert_eq!(rig.get(INTERRUPT_STATUS), 2);
}

#[test]
fn a_corrupt_receive_queue_is_found_by_the_frame_not_by_the_question() {
    let mut rx = Ring::at(0, 8);
    let mut rig = Rig::running(nic(), 0, std::slice::from_ref(&rx));
    rx.add(rig.mem(), &[(RAM_SIZE, 2000, true)]);
    let before = rig.state_hash();
    assert!(rig.can_receive(60));
    assert_eq!(rig.state_hash(), before);
    assert_eq!(rig.receive(&[0; 60]), RxOutcome::DeviceDown);
    assert!(rig.needs_reset());
    assert!(!rig.can_receive(60));
}

#[test]
fn a_ring_that_the_device_overwrites_ends() {
    // The used ring lies on the available ring, so that each used entry makes another chain available.
    let mut tx = Ring::at(1, 8);
    tx.used = tx.avail;
    let mut rig = Rig::running(nic(), 0, std::slice::from_ref(&tx));
    tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
    rig.kick(&tx);
    assert!(rig.take_outputs().len() <= 8);
    // A frame lands on the descriptor table that says where it goes.
    let mut rx = Ring::at(0, 8);
    let mut rig = Rig::running(nic(), MRG_RXBUF, std::slice::from_ref(&rx));
    for _ in 0..4 {
        rx.add(rig.mem(), &[(rx.desc, 64, true)]);
    }
    rig.receive(&[0xff; 200]);
    assert!(rig.needs_reset());
}
