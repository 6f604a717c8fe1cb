//! Registers, negotiation, reset.

use crate::driver::*;
use tandem_vmm::machine::virtio::blk::Blk;
use tandem_vmm::machine::virtio::console::Console;
use tandem_vmm::machine::virtio::net::Net;
use tandem_vmm::machine::virtio::rng::Rng;
use tandem_vmm::machine::virtio::{IRQS, MAX_SLOTS, VirtioDevice, VirtioMmio, slot_address};

fn console() -> VirtioDevice {
    VirtioDevice::Console(Console::new())
}

#[test]
fn identity_registers_name_the_device() {
    for (device, id, queue_sizes) in [
        (VirtioDevice::Net(Net::new(0, [2; 6])), 1, &[256, 256][..]),
        (VirtioDevice::Blk(Blk::new(0, 8, false, [0; 20])), 2, &[256]),
        (console(), 3, &[64, 64]),
        (VirtioDevice::Rng(Rng::new([0; 32])), 4, &[64]),
    ] {
        let mut rig = Rig::new(device);
        assert_eq!([rig.get(0), rig.get(4), rig.get(8)], [0x7472_6976, 2, id]);
        for (n, &size) in queue_sizes.iter().enumerate() {
            rig.set(QUEUE_SEL, n as u32);
            assert_eq!(rig.get(QUEUE_NUM_MAX), size);
        }
        rig.set(QUEUE_SEL, queue_sizes.len() as u32);
        assert_eq!(rig.get(QUEUE_NUM_MAX), 0);
        rig.set(DEVICE_FEATURES_SEL, 1);
        assert_eq!(rig.get(DEVICE_FEATURES), 1);
        rig.set(DEVICE_FEATURES_SEL, 2);
        assert_eq!(rig.get(DEVICE_FEATURES), 0);
    }
}

#[test]
fn configuration_space_is_read_in_any_width() {
    let rig = Rig::new(VirtioDevice::Net(Net::new(0, [0x52, 0x54, 0, 1, 2, 3])));
    let mut mac = [0; 6];
    for (n, byte) in mac.iter_mut().enumerate() {
        rig.device.read(0x100 + n as u64, std::slice::from_mut(byte));
    }
    assert_eq!(mac, [0x52, 0x54, 0, 1, 2, 3]);
    let mut status = [0; 2];
    rig.device.read(0x106, &mut status);
    assert_eq!(status, [1, 0]);
    let mut across_the_end = [0xff; 8];
    rig.device.read(0x104, &mut across_the_end);
    assert_eq!(across_the_end, [2, 3, 1, 0, 0, 0, 0, 0]);

    let rig = Rig::new(VirtioDevice::Blk(Blk::new(0, 0x1_2345_6789, false, [0; 20])));
    let mut capacity = [0; 8];
    rig.device.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 0x1_2345_6789);
    assert_eq!(rig.get(0x114), 512);
}

#[test]
fn odd_accesses_read_zeros_and_write_nothing() {
    let mut rig = Rig::new(console());
    let before = rig.state_hash();
    for offset in [0x70, 0x14, 0x30, 0x38, 0x80] {
        rig.write(offset, &[1]);
        rig.write(offset, &[1, 0]);
        rig.write(offset, &[1, 0, 0, 0, 0, 0, 0, 0]);
        rig.write(offset + 2, &[1, 0, 0, 0]);
    }
    rig.write(u64::MAX, &[1, 0, 0, 0]);
    rig.write(0x100, &[1, 0, 0, 0]);
    assert_eq!(rig.state_hash(), before);
    for len in [1, 2, 3, 8] {
        let mut data = vec![0xff; len];
        rig.device.read(0, &mut data);
        assert_eq!(data, vec![0; len]);
    }
    let mut data = [0xff; 4];
    rig.device.read(2, &mut data);
    assert_eq!(data, [0; 4]);
    rig.device.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn a_driver_without_version_1_or_with_unknown_features_is_refused() {
    for features in [EVENT_IDX, 0, VERSION_1 | 1 << 50, VERSION_1 | MRG_RXBUF] {
        let mut rig = Rig::new(console());
        rig.negotiate(features);
        assert_eq!(rig.get(STATUS), 1 | 2, "{features:#x}");
        rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
        assert_eq!(rig.get(STATUS), 1 | 2, "{features:#x}");
        rig.enable(&Ring::at(0, 8));
        assert_eq!(rig.get(QUEUE_READY), 0);
    }
    let mut rig = Rig::new(console());
    rig.negotiate(VERSION_1 | EVENT_IDX | INDIRECT);
    assert_eq!(rig.get(STATUS), 1 | 2 | FEATURES_OK);
}

#[test]
fn features_are_settled_once_they_are_accepted() {
    let mut rig = Rig::new(console());
    rig.negotiate(VERSION_1);
    let before = rig.state_hash();
    rig.set(DRIVER_FEATURES, 0);
    assert_eq!(rig.state_hash(), before);
}

#[test]
fn a_ready_queue_keeps_its_place() {
    let ring = Ring::at(0, 8);
    let mut rig = Rig::running(console(), 0, std::slice::from_ref(&ring));
    rig.set(QUEUE_SEL, 0);
    let before = rig.state_hash();
    rig.set(QUEUE_NUM, 4);
    rig.set(0x80, 0xdead_0000);
    rig.set(QUEUE_READY, 1);
    assert_eq!(rig.state_hash(), before);
    rig.set(QUEUE_READY, 0);
    assert_eq!(rig.get(QUEUE_READY), 0);
}

#[test]
fn a_queue_in_the_wrong_place_needs_a_reset() {
    let good = Ring::at(0, 8);
    let cases = [
        Ring { size: 0, ..good.clone() },
        Ring { size: 7, ..good.clone() },
        Ring { size: 128, ..good.clone() },
        Ring { desc: good.desc + 8, ..good.clone() },
        Ring { avail: good.avail + 1, ..good.clone() },
        Ring { used: good.used + 2, ..good.clone() },
        Ring { desc: RAM_SIZE - 64, ..good.clone() },
        Ring { avail: RAM_SIZE - 4, ..good.clone() },
        Ring { used: u64::MAX - 3, ..good.clone() },
        Ring { used: 0xd000_0000, ..good.clone() },
        Ring { avail: 0, ..good.clone() },
    ];
    for ring in cases {
        let mut rig = Rig::new(console());
        rig.negotiate(VERSION_1);
        rig.enable(&ring);
        assert_eq!(rig.get(QUEUE_READY), 0, "{ring:?}");
        assert!(rig.needs_reset(), "{ring:?}");
        // The driver is not at work yet: it is not interrupted.
        assert!(!rig.device.interrupt());
        rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
        rig.enable(&good);
        assert!(!rig.device.running());
        rig.set(STATUS, 0);
        assert_eq!(rig.get(STATUS), 0);
        assert_eq!(rig.state_hash(), Rig::new(console()).state_hash());
    }
}

#[test]
fn reset_returns_to_power_on() {
    let rings = [Ring::at(0, 8), Ring::at(1, 8)];
    let mut rig = Rig::running(console(), EVENT_IDX, &rings);
    rig.type_in(b"lost");
    rig.set(STATUS, 0);
    assert_eq!(rig.state_hash(), Rig::new(console()).state_hash());
    assert!(!rig.device.running());
}

#[test]
fn notifications_of_no_ready_queue_are_ignored() {
    let mut rig = Rig::running(console(), 0, &[Ring::at(0, 8)]);
    let before = (rig.state_hash(), rig.memory_hash());
    for queue in [1, 2, 0xffff, u32::MAX] {
        rig.set(QUEUE_NOTIFY, queue);
    }
    assert_eq!((rig.state_hash(), rig.memory_hash()), before);
}

#[test]
fn slots_have_addresses_and_lines_of_their_own() {
    let mut irqs = IRQS.to_vec();
    irqs.sort_unstable();
    irqs.dedup();
    assert_eq!(irqs.len(), MAX_SLOTS);
    for legacy in [0, 1, 2, 4, 7, 8, 13, 15] {
        assert!(!irqs.contains(&legacy));
    }
    let first = VirtioMmio::new(0, console()).unwrap();
    assert_eq!(first.command_line(), "virtio_mmio.device=4K@0xd0000000:5");
    let second = VirtioMmio::new(1, console()).unwrap();
    assert_eq!(second.command_line(), "virtio_mmio.device=4K@0xd0001000:9");
    assert_eq!(second.address(), slot_address(1));
    assert!(VirtioMmio::new(MAX_SLOTS, console()).is_err());
}
