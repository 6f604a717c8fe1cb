//! Frames cross the virtio network device without one allocation.

#[path = "../../logchan/tests/common/counting.rs"]
mod counting;

use counting::allocations;
use tandem_vmm::machine::memory::GuestRam;
use tandem_vmm::machine::output::{DiskRequest, Outputs, Packet};
use tandem_vmm::machine::virtio::net::offload::{COMPLETE, Offloads};
use tandem_vmm::machine::virtio::net::{Net, RxOutcome};
use tandem_vmm::machine::virtio::{VirtioDevice, VirtioMmio};
use vm_memory::{Bytes, GuestAddress};

/// Counts bytes, keeps nothing.
struct Sink(u64);

impl Outputs for Sink {
    fn packet(&mut self, _: u8, packet: &Packet<'_>) {
        self.0 += packet.len() as u64;
    }
    fn offloads(&mut self, _: u8, _: Offloads) {}
    fn disk(&mut self, _: DiskRequest<'_>) {}
    fn serial(&mut self, _: u8) {}
    fn console(&mut self, _: &[u8]) {}
}

const SIZE: u16 = 64;
const RX: u64 = 0x1_0000;
const TX: u64 = 0x2_0000;
const BUFFERS: u64 = 0x4_0000;

fn packet<const N: usize>(frame: [u8; N]) -> Vec<u8> {
    [&COMPLETE[..], &frame].concat()
}

#[test]
fn frames_cross_without_an_allocation() {
    let ram = GuestRam::new(2 << 20).unwrap();
    let mem = ram.memory();
    let mut out = Sink(0);
    let mut nic = VirtioMmio::new(0, VirtioDevice::Net(Net::new(0, [2; 6]))).unwrap();
    let mut set = |nic: &mut VirtioMmio, register: u64, value: u32| {
        nic.write(register, &value.to_le_bytes(), mem, &mut out);
    };
    set(&mut nic, 0x70, 3);
    set(&mut nic, 0x24, 0);
    set(&mut nic, 0x20, 1 << 29 | 1 << 28 | 1 << 15);
    set(&mut nic, 0x24, 1);
    set(&mut nic, 0x20, 1);
    set(&mut nic, 0x70, 3 | 8);
    for (queue, base) in [(0, RX), (1, TX)] {
        set(&mut nic, 0x30, queue);
        set(&mut nic, 0x38, u32::from(SIZE));
        set(&mut nic, 0x80, base as u32);
        set(&mut nic, 0x90, base as u32 + 0x1000);
        set(&mut nic, 0xa0, base as u32 + 0x2000);
        set(&mut nic, 0x44, 1);
        for n in 0..SIZE {
            // One buffer of 2,048 bytes each; those of the receive queue are for the device to write.
            let mut descriptor = [0; 16];
            let at = BUFFERS + u64::from(queue) * 0x4_0000 + u64::from(n) * 2048;
            descriptor[..8].copy_from_slice(&at.to_le_bytes());
            descriptor[8..12].copy_from_slice(&2048u32.to_le_bytes());
            descriptor[12] = if queue == 0 { 2 } else { 0 };
            mem.write_slice(&descriptor, GuestAddress(base + u64::from(n) * 16)).unwrap();
            mem.write_obj(n, GuestAddress(base + 0x1004 + u64::from(n) * 2)).unwrap();
        }
    }
    set(&mut nic, 0x70, 3 | 8 | 4);
    assert!(nic.running());

    let frame = packet([7; 1514]);
    let long = packet([8; 9000]);
    let mut received = 0;
    let round = |round: u16| {
        // The driver makes the whole ring available again.
        mem.write_obj(round.wrapping_mul(SIZE), GuestAddress(RX + 0x1002)).unwrap();
        mem.write_obj(round.wrapping_mul(SIZE), GuestAddress(TX + 0x1002)).unwrap();
        nic.write(0x50, &0u32.to_le_bytes(), mem, &mut out);
        nic.write(0x50, &1u32.to_le_bytes(), mem, &mut out);
        nic.write(0x64, &3u32.to_le_bytes(), mem, &mut out);
        while nic.can_receive(&long, mem) {
            assert_eq!(nic.receive(&frame, mem), RxOutcome::Delivered);
            assert_eq!(nic.receive(&long, mem), RxOutcome::Delivered);
            received += 2;
        }
        while nic.can_receive(&frame, mem) {
            assert_eq!(nic.receive(&frame, mem), RxOutcome::Delivered);
            received += 1;
        }
    };
    let ((), made) = allocations(|| (1..=1000).for_each(round));
    assert_eq!(nic.fault(), None);
    assert_eq!(out.0, 1000 * u64::from(SIZE) * (2048 - 2));
    assert!(received > 20_000, "{received}");
    assert_eq!(made, 0, "allocations for {received} frames in and {} bytes out", out.0);
}
