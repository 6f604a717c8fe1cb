//! Bytes both ways.

use crate::driver::*;
use tandem_vmm::machine::virtio::VirtioDevice;
use tandem_vmm::machine::virtio::console::{Console, MAX_INPUT};

const BUFFERS: u64 = 0x4_0000;

fn console() -> (Rig, Ring, Ring) {
    let rings = [Ring::at(0, 8), Ring::at(1, 8)];
    let rig = Rig::running(VirtioDevice::Console(Console::new()), 0, &rings);
    let [rx, tx] = rings;
    (rig, rx, tx)
}

fn joined(outputs: Vec<Out>) -> Vec<u8> {
    outputs
        .into_iter()
        .flat_map(|out| if let Out::Console(bytes) = out { bytes } else { panic!("{out:?}") })
        .collect()
}

#[test]
fn output_leaves_whole_and_in_order() {
    let (mut rig, _, mut tx) = console();
    let text: Vec<u8> = (0..10_000).map(|n| (n % 253) as u8).collect();
    rig.put(BUFFERS, &text);
    tx.add(rig.mem(), &[(BUFFERS, 3, false), (BUFFERS + 3, 9_997, false)]);
    tx.add(rig.mem(), &[(BUFFERS, 5, false)]);
    rig.kick(&tx);
    let got = joined(rig.take_outputs());
    assert_eq!(got[..10_000], text);
    assert_eq!(got[10_000..], text[..5]);
    assert!(rig.take_interrupt());
}

#[test]
fn input_waits_for_buffers() {
    let (mut rig, mut rx, _) = console();
    assert_eq!(rig.type_in(b"hello "), 6);
    assert_eq!(rig.type_in(b"world"), 5);
    assert!(!rig.device.interrupt());
    assert!(rx.kick_wanted(rig.mem()));
    rx.add(rig.mem(), &[(BUFFERS, 4, true)]);
    rx.add(rig.mem(), &[(BUFFERS + 4, 64, true)]);
    rx.add(rig.mem(), &[(BUFFERS + 0x100, 64, true)]);
    rig.kick(&rx);
    assert_eq!(rx.used(rig.mem()), Some((0, 4)));
    assert_eq!(rx.used(rig.mem()), Some((1, 7)));
    assert_eq!(rig.bytes(BUFFERS, 11), b"hello world");
    assert!(rig.take_interrupt());
    assert!(!rx.kick_wanted(rig.mem()));
    assert_eq!(rig.type_in(b"!"), 1);
    assert_eq!(rx.used(rig.mem()), Some((2, 1)));
    assert_eq!(rig.bytes(BUFFERS + 0x100, 1), b"!");
}

#[test]
fn input_beyond_the_bound_is_lost() {
    let (mut rig, ..) = console();
    assert_eq!(rig.type_in(&vec![b'x'; MAX_INPUT - 1]), MAX_INPUT - 1);
    assert_eq!(rig.type_in(b"yz"), 1);
    assert_eq!(rig.type_in(b"z"), 0);
}

#[test]
fn too_long_an_output_is_an_error() {
    let (mut rig, _, mut tx) = console();
    tx.add(rig.mem(), &[(BUFFERS, 1 << 20, false), (BUFFERS, 1, false)]);
    rig.kick(&tx);
    assert!(rig.needs_reset() && rig.take_outputs().is_empty());
}
