//! Frames out and in.

use crate::driver::*;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::net::offload::Offloads;
use tandem_vmm::machine::virtio::net::{MAX_FRAME, Net, RxOutcome};

const BUFFERS: u64 = 0x4_0000;

fn nic(features: u64, size: u16) -> (Rig, Ring, Ring) {
    let rings = [Ring::at(0, size), Ring::at(1, size)];
    let rig = Rig::running(VirtioDevice::Net(Net::new(3, [2; 6])), features, &rings);
    let [rx, tx] = rings;
    (rig, rx, tx)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn frames_leave_however_they_are_cut() {
    for features in [0, EVENT_IDX] {
        let (mut rig, _, mut tx) = nic(features, 64);
        for len in [14, 60, 1514, MAX_FRAME] {
            let sent = frame(len);
            rig.put(BUFFERS, &[0; 12]);
            rig.put(BUFFERS + 12, &sent);
            let total = 12 + len as u32;
            let framings: [&[Buffer]; 4] = [
                &[(BUFFERS, total, false)],
                &[(BUFFERS, 12, false), (BUFFERS + 12, total - 12, false)],
                &[(BUFFERS, 5, false), (BUFFERS + 5, 8, false), (BUFFERS + 13, total - 13, false)],
                &[(BUFFERS, 13, false), (BUFFERS + 13, total - 13, false)],
            ];
            for buffers in framings {
                tx.set_used_event(rig.mem(), tx.avail_idx);
                let head = tx.add(rig.mem(), buffers);
                rig.kick(&tx);
                assert_eq!(rig.take_outputs(), [Out::Packet(3, sent.clone())]);
                assert_eq!(tx.used(rig.mem()), Some((u32::from(head), 0)));
                assert_eq!(tx.used(rig.mem()), None);
                assert!(rig.take_interrupt(), "{features:#x} {len}");
            }
        }
    }
}

#[test]
fn a_runt_is_dropped_and_no_header_at_all_is_an_error() {
    let (mut rig, _, mut tx) = nic(0, 8);
    tx.add(rig.mem(), &[(BUFFERS, 12 + 13, false)]);
    rig.kick(&tx);
    assert_eq!(tx.used(rig.mem()), Some((0, 0)));
    assert!(rig.take_outputs().is_empty() && !rig.needs_reset());
    tx.add(rig.mem(), &[(BUFFERS, 11, false)]);
    rig.kick(&tx);
    assert!(rig.needs_reset());
    let (mut rig, _, mut tx) = nic(0, 8);
    tx.add(rig.mem(), &[(BUFFERS, 12 + MAX_FRAME as u32 + 1, false)]);
    rig.kick(&tx);
    assert!(rig.needs_reset());
}

#[test]
fn a_whole_batch_leaves_on_one_kick_and_in_order() {
    let (mut rig, _, mut tx) = nic(EVENT_IDX, 16);
    for n in 0..16u8 {
        rig.put(BUFFERS + u64::from(n) * 0x100 + 12, &[n; 68]);
        tx.add(rig.mem(), &[(BUFFERS + u64::from(n) * 0x100, 80, false)]);
    }
    rig.kick(&tx);
    let expected: Vec<_> = (0..16u8).map(|n| Out::Packet(3, vec![n; 68])).collect();
    assert_eq!(rig.take_outputs(), expected);
    assert_eq!(tx.avail_event(rig.mem()), 16);
}

#[test]
fn frames_arrive_behind_a_header() {
    for features in [0, EVENT_IDX, MRG_RXBUF] {
        let (mut rig, mut rx, _) = nic(features, 8);
        let head = rx.add(rig.mem(), &[(BUFFERS, 10, true), (BUFFERS + 0x1000, 2000, true)]);
        rig.kick(&rx);
        assert!(rig.can_receive(1514));
        let sent = frame(1514);
        assert_eq!(rig.receive(&sent), RxOutcome::Delivered);
        assert_eq!(rx.used(rig.mem()), Some((u32::from(head), 1526)));
        assert_eq!(rig.bytes(BUFFERS, 10), [0; 10]);
        assert_eq!(rig.bytes(BUFFERS + 0x1000, 2), [1, 0]);
        assert_eq!(rig.bytes(BUFFERS + 0x1002, 1514), sent);
        assert!(rig.take_interrupt());
    }
}

#[test]
fn a_long_frame_is_spread_over_mergeable_buffers() {
    let (mut rig, mut rx, _) = nic(MRG_RXBUF, 32);
    for n in 0..8 {
        rx.add(rig.mem(), &[(BUFFERS + n * 0x1000, 1000, true)]);
    }
    rig.kick(&rx);
    let sent = frame(2500);
    assert_eq!(rig.receive(&sent), RxOutcome::Delivered);
    assert_eq!(rx.used(rig.mem()), Some((0, 1000)));
    assert_eq!(rx.used(rig.mem()), Some((1, 1000)));
    assert_eq!(rx.used(rig.mem()), Some((2, 512)));
    assert_eq!(rx.used(rig.mem()), None);
    assert_eq!(rig.bytes(BUFFERS + 10, 2), [3, 0]);
    let mut got = rig.bytes(BUFFERS + 12, 988);
    got.extend(rig.bytes(BUFFERS + 0x1000, 1000));
    got.extend(rig.bytes(BUFFERS + 0x2000, 512));
    assert_eq!(got, sent);
    // Five buffers are left: 4,988 bytes of frame and no more.
    assert!(rig.can_receive(4988));
    assert!(!rig.can_receive(4989));
    let before = rig.memory_hash();
    assert_eq!(rig.receive(&frame(4989)), RxOutcome::NoBuffer);
    assert_eq!(rig.receive(&frame(4988)), RxOutcome::Delivered);
    assert_ne!(rig.memory_hash(), before);
}

#[test]
fn without_room_or_driver_frames_are_dropped() {
    let mut rig = Rig::new(VirtioDevice::Net(Net::new(0, [2; 6])));
    assert_eq!(rig.receive(&frame(60)), RxOutcome::DeviceDown);
    assert!(!rig.can_receive(60));

    let (mut rig, mut rx, _) = nic(0, 8);
    assert!(!rig.can_receive(60));
    let before = rig.memory_hash();
    assert_eq!(rig.receive(&frame(60)), RxOutcome::NoBuffer);
    rx.add(rig.mem(), &[(BUFFERS, 12 + 60, true)]);
    assert_eq!(rig.receive(&frame(61)), RxOutcome::NoBuffer);
    assert_eq!(rig.receive(&frame(13)), RxOutcome::BadLength);
    assert_eq!(rig.receive(&frame(MAX_FRAME + 1)), RxOutcome::BadLength);
    assert_eq!(rx.used(rig.mem()), None);
    assert_ne!(rig.memory_hash(), before);
    assert_eq!(rig.receive(&frame(60)), RxOutcome::Delivered);
    assert!(!rig.needs_reset());
}

/// Byte 34 of the frame begins what is summed up, the sum lies 16 bytes into it; segments of 1,460 bytes.
const CHECKSUM: [u8; 10] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0];
const SEGMENTS: [u8; 10] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];

/// CSUM and HOST_TSO4; GUEST_CSUM and GUEST_TSO4.
const FROM_GUEST: u64 = 1 | 1 << 11;
const TO_GUEST: u64 = 1 << 1 | 1 << 7;

#[test]
fn what_the_driver_leaves_to_the_host_leaves_with_the_frame() {
    let (mut rig, _, mut tx) = nic(FROM_GUEST, 8);
    let sent = frame(9000);
    rig.put(BUFFERS + 12, &sent);
    for (header, out) in [
        (CHECKSUM, Some(Out::Partial(3, CHECKSUM, sent.clone()))),
        (SEGMENTS, Some(Out::Partial(3, SEGMENTS, sent.clone()))),
        // Over IPv6, which was not negotiated: dropped, and no more.
        ([1, 4, 74, 0, 0xa0, 5, 54, 0, 16, 0], None),
        // A receiver's flag, and the number of buffers: ignored.
        ([2, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some(Out::Packet(3, sent.clone()))),
    ] {
        rig.put(BUFFERS, &header);
        rig.put(BUFFERS + 10, &[0xff; 2]);
        tx.add(rig.mem(), &[(BUFFERS, 9012, false)]);
        rig.kick(&tx);
        assert_eq!(rig.take_outputs(), Vec::from_iter(out), "{header:?}");
        assert!(tx.used(rig.mem()).is_some());
    }
    assert_eq!(rig.out.offloads, Some((3, Offloads::NONE)), "to it, nothing was negotiated");
    assert!(!rig.needs_reset());
}

#[test]
fn a_packet_arrives_only_if_the_driver_can_do_what_is_left() {
    let four = Offloads::CHECKSUM | Offloads::TSO4;
    for (features, offloads, segments, sum) in [
        (TO_GUEST | MRG_RXBUF, four, true, true),
        (1 << 1 | MRG_RXBUF, Offloads::CHECKSUM, false, true),
        (MRG_RXBUF, Offloads::NONE, false, false),
    ] {
        let (mut rig, mut rx, _) = nic(features, 8);
        assert_eq!(rig.out.offloads, Some((3, offloads)));
        for (header, taken) in [(SEGMENTS, segments), (CHECKSUM, sum), ([0; 10], true)] {
            for n in 0..2 {
                rx.add(rig.mem(), &[(BUFFERS + n * 0x4000, 5000, true)]);
            }
            let sent = packet(header, &frame(9000));
            assert_eq!(rig.device.can_receive(&sent, rig.mem()), taken);
            let outcome = rig.device.receive(&sent, rig.ram.memory());
            if !taken {
                assert_eq!(outcome, RxOutcome::NotNegotiated);
                continue;
            }
            assert_eq!(outcome, RxOutcome::Delivered);
            let (head, len) = rx.used(rig.mem()).unwrap();
            assert_eq!(len, 5000);
            let at = BUFFERS + u64::from(head % 2) * 0x4000;
            assert_eq!(rig.bytes(at, 10), header);
            assert_eq!(rig.bytes(at + 10, 2), [2, 0]);
            assert_eq!(rx.used(rig.mem()).map(|(_, len)| len), Some(4012));
        }
        // With the driver gone, the host is told to leave nothing to it.
        rig.set(STATUS, 0);
        assert_eq!(rig.out.offloads, Some((3, Offloads::NONE)));
        assert!(!rig.device.can_receive(&packet(SEGMENTS, &frame(9000)), rig.mem()));
    }
}

#[test]
fn a_packet_without_a_whole_header_is_dropped() {
    let (mut rig, mut rx, _) = nic(TO_GUEST, 8);
    rx.add(rig.mem(), &[(BUFFERS, 5000, true)]);
    for len in 0..24 {
        let runt = vec![0; len];
        assert!(!rig.device.can_receive(&runt, rig.mem()));
        assert_eq!(rig.device.receive(&runt, rig.ram.memory()), RxOutcome::BadLength);
    }
    assert_eq!(rig.device.receive(&[0; 24], rig.ram.memory()), RxOutcome::Delivered);
}

#[test]
fn the_driver_is_asked_for_a_kick_only_when_its_buffers_run_out() {
    let (mut rig, mut rx, _) = nic(0, 8);
    assert!(rx.kick_wanted(rig.mem()));
    for n in 0..2 {
        rx.add(rig.mem(), &[(BUFFERS + n * 0x1000, 2000, true)]);
    }
    rig.kick(&rx);
    assert!(!rx.kick_wanted(rig.mem()));
    rig.receive(&frame(60));
    assert!(!rx.kick_wanted(rig.mem()));
    rig.receive(&frame(60));
    assert!(rx.kick_wanted(rig.mem()));

    let (mut rig, mut rx, _) = nic(EVENT_IDX, 8);
    for n in 0..2 {
        rx.add(rig.mem(), &[(BUFFERS + n * 0x1000, 2000, true)]);
    }
    rig.kick(&rx);
    assert_eq!(rx.avail_event(rig.mem()), 0);
    rig.receive(&frame(60));
    assert_eq!(rx.avail_event(rig.mem()), 0);
    rig.receive(&frame(60));
    assert_eq!(rx.avail_event(rig.mem()), 2);
}

#[test]
fn interrupts_are_held_back_as_the_driver_asks() {
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    let (mut rig, _, mut tx) = nic(0, 8);
    rig.put(tx.avail, &[1, 0]);
    tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
    rig.kick(&tx);
    assert!(tx.used(rig.mem()).is_some() && !rig.take_interrupt());
    rig.put(tx.avail, &[0, 0]);
    tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
    rig.kick(&tx);
    assert!(rig.take_interrupt());
    // A kick with nothing new interrupts nobody.
    rig.kick(&tx);
    assert!(!rig.take_interrupt());

    // used_event: only once the third entry is used.
    let (mut rig, _, mut tx) = nic(EVENT_IDX, 8);
    tx.set_used_event(rig.mem(), 2);
    for n in 0..5 {
        tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
        rig.kick(&tx);
        assert_eq!(rig.take_interrupt(), n == 2, "{n}");
    }
    // Two entries at once cross the sixth.
    tx.set_used_event(rig.mem(), 5);
    tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
    tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
    rig.kick(&tx);
    assert!(rig.take_interrupt());
}

#[test]
fn what_was_made_available_before_driver_ok_is_served_then() {
    let mut tx = Ring::at(1, 8);
    let mut rig = Rig::new(VirtioDevice::Net(Net::new(0, [2; 6])));
    rig.negotiate(VERSION_1);
    rig.enable(&tx);
    tx.add(rig.mem(), &[(BUFFERS, 80, false)]);
    rig.kick(&tx);
    assert!(rig.take_outputs().is_empty());
    rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    assert_eq!(rig.take_outputs().len(), 1);
}

#[test]
fn indices_wrap_around() {
    let (mut rig, mut rx, mut tx) = nic(EVENT_IDX | INDIRECT, 4);
    for n in 0..70_000u32 {
        let byte = n as u8;
        rx.add(rig.mem(), &[(BUFFERS, 200, true)]);
        rx.set_used_event(rig.mem(), n as u16);
        assert_eq!(rig.receive(&[byte; 60]), RxOutcome::Delivered);
        assert!(rig.take_interrupt(), "{n}");
        assert_eq!(rx.used(rig.mem()), Some((n % 4, 72)));
        rig.put(BUFFERS + 0x1000 + 12, &[byte; 60]);
        tx.add(rig.mem(), &[(BUFFERS + 0x1000, 72, false)]);
        rig.kick(&tx);
        assert!(tx.used(rig.mem()).is_some());
        assert_eq!(rig.take_outputs(), [Out::Packet(3, vec![byte; 60])]);
    }
    assert!(!rig.needs_reset());
}

#[test]
fn an_indirect_chain_is_followed() {
    let (mut rig, _, mut tx) = nic(INDIRECT, 8);
    let table = BUFFERS + 0x8000;
    let sent = frame(60);
    rig.put(BUFFERS + 0x2000, &sent);
    write_descriptor(rig.mem(), table, BUFFERS, 12, NEXT, 1);
    write_descriptor(rig.mem(), table + 16, BUFFERS + 0x2000, 60, 0, 0);
    // The device must ignore the write flag on the table itself (section 2.7.5.3.2).
    tx.descriptor(rig.mem(), 5, table, 32, INDIRECT_TABLE | WRITE, 0);
    tx.offer(rig.mem(), 5);
    rig.kick(&tx);
    assert_eq!(rig.take_outputs(), [Out::Packet(3, sent.clone())]);
    // And plain descriptors may come before the table.
    tx.descriptor(rig.mem(), 0, BUFFERS, 12, NEXT, 1);
    tx.descriptor(rig.mem(), 1, table + 16, 16, INDIRECT_TABLE, 0);
    tx.offer(rig.mem(), 0);
    rig.kick(&tx);
    assert_eq!(rig.take_outputs(), [Out::Packet(3, sent)]);
}
