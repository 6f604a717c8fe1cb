//! The output gate, an arbiter's claim, the digest's fold, and packets that a guest sends.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tandem_arbiter::{Arbiter, Claim, InitOptions, Side, Token, Verdict, VmId};
use tandem_vmm::machine::memory::GuestRam;
use tandem_vmm::machine::output::{DiskRequest, Outputs, Packet};
use tandem_vmm::machine::virtio::device::VirtioDevice;
use tandem_vmm::machine::virtio::mmio::VirtioMmio;
use tandem_vmm::machine::virtio::net::offload::Offloads;
use tandem_vmm::machine::virtio::net::{HEADER_LEN, Net, QUEUE_SIZE};
use tandem_vmm::replay::trace::ExitRecord;
use tandem_vmm::role::gate::Gate;
use tandem_vmm::role::{Moment, Timing};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress};

/// One output: bound to its frame, acknowledged, asked for, released.
fn gate(c: &mut Criterion) {
    let mut gate = Gate::new(&Timing::default(), 4096);
    let mut sequence = 0;
    c.bench_function("gate, one output through", |b| {
        b.iter(|| {
            sequence += 1;
            let number = gate.bind(sequence).unwrap();
            gate.on_ack(sequence);
            black_box(gate.releasable(Moment::from_nanos(sequence)));
            gate.released(number + 1);
        });
    });
}

/// A claim that nobody contests, on storage in memory: the arbiter's own cost, without a disk's.
fn claims(c: &mut Criterion) {
    let (vm, options) = (VmId([7; 16]), InitOptions { overwrite: true, ..InitOptions::default() });
    let directory = std::env::temp_dir().join(format!("tandem-bench-arbiter-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let claim = Claim { vm, generation: 1, side: Side::Primary, token: Token([1; 16]), time_ms: 0 };
    let file = directory.join("arbiter");
    c.bench_function("arbiter claim, Disk Paxos in a file", |b| {
        b.iter_batched(
            || Arbiter::init(&file, vm, &options).unwrap(),
            |mut arbiter| assert_eq!(arbiter.claim(&claim).unwrap(), Verdict::Won),
            BatchSize::PerIteration,
        );
    });
    let links = directory.join("links");
    c.bench_function("arbiter claim, link in a directory", |b| {
        b.iter_batched(
            || {
                let _ = std::fs::remove_dir_all(&links);
                std::fs::create_dir(&links).unwrap();
                Arbiter::init(&links, vm, &options).unwrap()
            },
            |mut arbiter| assert_eq!(arbiter.claim(&claim).unwrap(), Verdict::Won),
            BatchSize::PerIteration,
        );
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

/// One exit into the running digest.
fn digest(c: &mut Criterion) {
    let record = ExitRecord::default();
    let mut digest = 0;
    c.bench_function("digest fold, one exit", |b| {
        b.iter(|| {
            digest = black_box(&record).fold(digest);
            digest
        });
    });
}

/// Packets are copied to where they would leave from.
struct Copied(Vec<u8>, usize);

impl Outputs for Copied {
    fn packet(&mut self, _nic: u8, packet: &Packet<'_>) {
        let (start, len) = (self.1, packet.len());
        packet.copy_to(&mut self.0[start..start + len]);
        self.1 += len;
    }
    fn offloads(&mut self, _nic: u8, _to_guest: Offloads) {}
    fn disk(&mut self, _request: DiskRequest<'_>) {}
    fn serial(&mut self, _byte: u8) {}
    fn console(&mut self, _bytes: &[u8]) {}
}

/// Fifty replies of 64 bytes, each in one buffer with its header, at one notification: what a guest that serves fifty clients
/// costs at an exit, without the exit.
fn transmit(c: &mut Criterion) {
    const PACKETS: u16 = 50;
    const LEN: usize = HEADER_LEN + 64;
    const TX: u32 = 1;
    let (table, available, used, buffers) = (0x1000, 0x2000, 0x3000, 0x10_0000);
    let ram = GuestRam::new(2 << 20).unwrap();
    let mem = ram.memory();
    let mut out = Copied(vec![0; 1 << 16], 0);
    let mut nic = VirtioMmio::new(0, VirtioDevice::Net(Net::new(0, [2, 0, 0, 0, 0, 1]))).unwrap();
    // As a driver sets a device up, with VIRTIO_F_VERSION_1 alone (virtio 1.3, section 4.2.3).
    let setup: [(u32, u32); 11] = [
        (VIRTIO_MMIO_STATUS, 3),
        (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
        (VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (VIRTIO_MMIO_STATUS, 11),
        (VIRTIO_MMIO_QUEUE_SEL, TX),
        (VIRTIO_MMIO_QUEUE_NUM, u32::from(QUEUE_SIZE)),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, table),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, available),
        (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        (VIRTIO_MMIO_QUEUE_READY, 1),
        (VIRTIO_MMIO_STATUS, 15),
    ];
    for (register, value) in setup {
        nic.write(u64::from(register), &value.to_le_bytes(), mem, &mut out);
    }
    let put = |at: u32, value: u64| mem.write_obj(value, GuestAddress(u64::from(at))).unwrap();
    for n in 0..u32::from(QUEUE_SIZE) {
        put(table + 16 * n, u64::from(buffers + 2048 * n));
        put(table + 16 * n + 8, LEN as u64);
        mem.write_obj(n as u16, GuestAddress(u64::from(available + 4 + 2 * n))).unwrap();
    }
    let mut index = 0u16;
    let mut notify = || {
        index = index.wrapping_add(PACKETS);
        mem.write_obj(index, GuestAddress(u64::from(available + 2))).unwrap();
        out.1 = 0;
        nic.write(u64::from(VIRTIO_MMIO_QUEUE_NOTIFY), &TX.to_le_bytes(), mem, &mut out);
        out.1
    };
    assert_eq!(notify(), usize::from(PACKETS) * (LEN - 2));
    c.bench_function("transmit queue, fifty packets at a notification", |b| b.iter(&mut notify));
}

criterion_group!(benches, gate, claims, digest, transmit);
criterion_main!(benches);
