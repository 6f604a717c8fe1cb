//! Entropy that both sides agree on.

use crate::driver::*;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::rng::Rng;

fn draw(seed: u8, lens: &[u32]) -> Vec<Vec<u8>> {
    let mut ring = Ring::at(0, 16);
    let mut rig = Rig::running(VirtioDevice::Rng(Rng::new([seed; 32])), 0, std::slice::from_ref(&ring));
    lens.iter()
        .map(|&len| {
            rig.put(0x4_0000, &vec![0; 8192]);
            ring.add(rig.mem(), &[(0x4_0000, len, true)]);
            rig.kick(&ring);
            let (_, used) = ring.used(rig.mem()).unwrap();
            assert!(rig.take_interrupt());
            assert_eq!(used, len.min(4096));
            assert!(rig.bytes(0x4_0000 + u64::from(used), 64).iter().all(|&b| b == 0));
            rig.bytes(0x4_0000, used as usize)
        })
        .collect()
}

#[test]
fn the_seed_alone_decides() {
    let lens = [64, 1, 3, 100, 8000];
    let first = draw(1, &lens);
    assert_eq!(first, draw(1, &lens));
    assert_ne!(first, draw(2, &lens));
    // 64 bytes of zeros, or the same 64 again, would be no entropy.
    assert_ne!(first[0], vec![0; 64]);
    assert_ne!(first[0][..], first[4][..64]);
}

#[test]
fn a_reset_does_not_rewind_the_stream() {
    let mut ring = Ring::at(0, 16);
    let mut rig = Rig::running(VirtioDevice::Rng(Rng::new([7; 32])), 0, std::slice::from_ref(&ring));
    ring.add(rig.mem(), &[(0x4_0000, 32, true)]);
    rig.kick(&ring);
    let before = rig.state_hash();
    let first = rig.bytes(0x4_0000, 32);
    rig.set(STATUS, 0);
    rig.put(ring.avail, &[0; 64]);
    let mut ring = Ring::at(0, 16);
    rig.negotiate(VERSION_1);
    rig.enable(&ring);
    rig.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
    ring.add(rig.mem(), &[(0x4_0000, 32, true)]);
    rig.kick(&ring);
    assert_ne!(rig.bytes(0x4_0000, 32), first);
    assert_ne!(rig.state_hash(), before);
}

#[test]
fn a_buffer_that_cannot_be_written_is_an_error() {
    let mut ring = Ring::at(0, 16);
    let mut rig = Rig::running(VirtioDevice::Rng(Rng::new([7; 32])), 0, std::slice::from_ref(&ring));
    ring.add(rig.mem(), &[(0x4_0000, 32, false)]);
    rig.kick(&ring);
    assert!(rig.needs_reset());
}
