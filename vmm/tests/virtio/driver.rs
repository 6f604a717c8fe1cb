//! A driver for the tests: what a guest does, by hand.

use std::hash::{DefaultHasher, Hasher};

use tandem_vmm::machine::input::DiskStatus;
use tandem_vmm::machine::memory::{GuestMemory, GuestRam};
use tandem_vmm::machine::output::{DiskOp, DiskRequest, Outputs, Packet};
use tandem_vmm::machine::virtio::net::RxOutcome;
use tandem_vmm::machine::virtio::net::offload::{COMPLETE, HEADER_LEN, Offloads};
use tandem_vmm::machine::virtio::{VirtioDevice, VirtioMmio};
use vm_memory::{Bytes, GuestAddress};

pub(crate) const RAM_SIZE: u64 = 2 << 20;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT_TABLE: u16 = 4;

pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
pub(crate) const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;

pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const NEEDS_RESET: u32 = 0x40;

/// What came out, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Out {
    /// A frame that nothing is left to do with.
    Packet(u8, Vec<u8>),
    /// Another, with its header.
    Partial(u8, [u8; HEADER_LEN], Vec<u8>),
    Read {
        tag: u64,
        offset: u64,
        len: u32,
    },
    Write {
        tag: u64,
        offset: u64,
        data: Vec<u8>,
    },
    Flush {
        tag: u64,
    },
    Console(Vec<u8>),
}

impl From<DiskRequest<'_>> for Out {
    fn from(request: DiskRequest<'_>) -> Self {
        let tag = request.tag;
        match request.op {
            DiskOp::Read { offset, len } => Self::Read { tag, offset, len },
            DiskOp::Write { offset, data } => Self::Write { tag, offset, data: data.to_vec() },
            DiskOp::Flush => Self::Flush { tag },
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Recorder {
    pub(crate) out: Vec<Out>,
    /// What the host heard last that the driver can do.
    pub(crate) offloads: Option<(u8, Offloads)>,
}

impl Outputs for Recorder {
    fn packet(&mut self, nic: u8, packet: &Packet<'_>) {
        let packet = packet.to_vec();
        let (header, frame) = packet.split_first_chunk().unwrap();
        self.out.push(match *header {
            COMPLETE => Out::Packet(nic, frame.to_vec()),
            header => Out::Partial(nic, header, frame.to_vec()),
        });
    }
    fn offloads(&mut self, nic: u8, to_guest: Offloads) {
        self.offloads = Some((nic, to_guest));
    }
    fn disk(&mut self, request: DiskRequest<'_>) {
        self.out.push(request.into());
    }
    fn serial(&mut self, _: u8) {
        unreachable!("a virtio device has no serial line");
    }
    fn console(&mut self, bytes: &[u8]) {
        self.out.push(Out::Console(bytes.to_vec()));
    }
}

/// A buffer: address, length, whether the device writes it.
pub(crate) type Buffer = (u64, u32, bool);

/// Where the driver put a queue, and how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) index: u32,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) next_desc: u16,
    pub(crate) avail_idx: u16,
    pub(crate) seen: u16,
}

impl Ring {
    /// Queue `index` at a place of its own, with `size` entries (at most 256).
    pub(crate) fn at(index: u32, size: u16) -> Self {
        let base = 0x1_0000 + u64::from(index) * 0x4000;
        Self {
            index,
            size,
            desc: base,
            avail: base + 0x1000,
            used: base + 0x2000,
            next_desc: 0,
            avail_idx: 0,
            seen: 0,
        }
    }

    pub(crate) fn descriptor(
        &self,
        mem: &GuestMemory,
        n: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        write_descriptor(mem, self.desc + u64::from(n) * 16, address, len, flags, next);
    }

    /// Makes a chain of fresh descriptors available; returns its head.
    pub(crate) fn add(&mut self, mem: &GuestMemory, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (n, &(address, len, writable)) in buffers.iter().enumerate() {
            let at = self.next_desc;
            self.next_desc = (at + 1) % self.size;
            let more = n + 1 < buffers.len();
            let flags = if more { NEXT } else { 0 } | if writable { WRITE } else { 0 };
            self.descriptor(mem, at, address, len, flags, self.next_desc);
        }
        self.offer(mem, head);
        head
    }

    /// Puts `head` into the available ring.
    pub(crate) fn offer(&mut self, mem: &GuestMemory, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        mem.write_obj(self.avail_idx, GuestAddress(self.avail + 2)).unwrap();
    }

    /// The next entry of the used ring: head and length.
    pub(crate) fn used(&mut self, mem: &GuestMemory) -> Option<(u32, u32)> {
        let idx: u16 = mem.read_obj(GuestAddress(self.used + 2)).unwrap();
        if idx == self.seen {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some((mem.read_obj(GuestAddress(at)).unwrap(), mem.read_obj(GuestAddress(at + 4)).unwrap()))
    }

    /// With EVENT_IDX: interrupt me when used entry `index` is there.
    pub(crate) fn set_used_event(&self, mem: &GuestMemory, index: u16) {
        mem.write_obj(index, GuestAddress(self.avail + 4 + 2 * u64::from(self.size))).unwrap();
    }

    /// With EVENT_IDX: the available index after which the device wants to be notified.
    pub(crate) fn avail_event(&self, mem: &GuestMemory) -> u16 {
        mem.read_obj(GuestAddress(self.used + 4 + 8 * u64::from(self.size))).unwrap()
    }

    /// Without EVENT_IDX: whether the device wants to be notified.
    pub(crate) fn kick_wanted(&self, mem: &GuestMemory) -> bool {
        mem.read_obj::<u16>(GuestAddress(self.used)).unwrap() & 1 == 0
    }
}

pub(crate) fn packet(header: [u8; HEADER_LEN], frame: &[u8]) -> Vec<u8> {
    [&header, frame].concat()
}

pub(crate) fn write_descriptor(mem: &GuestMemory, at: u64, address: u64, len: u32, flags: u16, next: u16) {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    mem.write_slice(&raw, GuestAddress(at)).unwrap();
}

/// A device, the memory it works on, and what came out of it.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) ram: GuestRam,
    pub(crate) device: VirtioMmio,
    pub(crate) out: Recorder,
}

impl Rig {
    pub(crate) fn new(device: VirtioDevice) -> Self {
        Self {
            ram: GuestRam::new(RAM_SIZE).unwrap(),
            device: VirtioMmio::new(0, device).unwrap(),
            out: Recorder::default(),
        }
    }

    /// A device whose driver has negotiated `features` (VERSION_1 besides) and set up `rings`.
    pub(crate) fn running(device: VirtioDevice, features: u64, rings: &[Ring]) -> Self {
        let mut rig = Self::new(device);
        rig.negotiate(features | VERSION_1);
        for ring in rings {
            rig.enable(ring);
        }
        rig.drive(rings);
        rig
    }

    pub(crate) fn negotiate(&mut self, features: u64) {
        self.set(STATUS, 1);
        self.set(STATUS, 1 | 2);
        self.set(DRIVER_FEATURES_SEL, 0);
        self.set(DRIVER_FEATURES, features as u32);
        self.set(DRIVER_FEATURES_SEL, 1);
        self.set(DRIVER_FEATURES, (features >> 32) as u32);
        self.set(STATUS, 1 | 2 | FEATURES_OK);
    }

    pub(crate) fn enable(&mut self, ring: &Ring) {
        self.set(QUEUE_SEL, ring.index);
        self.set(QUEUE_NUM, u32::from(ring.size));
        for (low, address) in [(0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used)] {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(QUEUE_READY, 1);
    }

    fn drive(&mut self, rings: &[Ring]) {
        for ring in rings {
            self.set(QUEUE_SEL, ring.index);
            assert_eq!(self.get(QUEUE_READY), 1);
        }
        self.set(STATUS, 1 | 2 | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.get(STATUS), 1 | 2 | FEATURES_OK | DRIVER_OK);
    }

    pub(crate) fn mem(&self) -> &GuestMemory {
        self.ram.memory()
    }

    pub(crate) fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn set(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.device.write(offset, data, self.ram.memory(), &mut self.out);
    }

    pub(crate) fn kick(&mut self, ring: &Ring) {
        self.set(QUEUE_NOTIFY, ring.index);
    }

    /// A frame arrives that nothing is left to do with.
    pub(crate) fn receive(&mut self, frame: &[u8]) -> RxOutcome {
        self.device.receive(&packet(COMPLETE, frame), self.ram.memory())
    }

    /// Whether such a frame of `len` bytes would be taken.
    pub(crate) fn can_receive(&self, len: usize) -> bool {
        self.device.can_receive(&packet(COMPLETE, &vec![0; len]), self.ram.memory())
    }

    pub(crate) fn complete(
        &mut self,
        tag: u64,
        status: DiskStatus,
        data: &[u8],
    ) -> Result<(), tandem_vmm::machine::virtio::blk::CompletionError> {
        self.device.complete(tag, status, data, self.ram.memory(), &mut self.out)
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) -> usize {
        self.device.type_in(bytes, self.ram.memory())
    }

    /// Whether the line is up for a used buffer; acknowledges it.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        let pending = self.get(INTERRUPT_STATUS);
        assert_eq!(self.device.interrupt(), pending != 0);
        self.set(INTERRUPT_ACK, pending);
        assert!(!self.device.interrupt());
        pending & 1 != 0
    }

    pub(crate) fn take_outputs(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.out.out)
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.mem().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.get(STATUS) & NEEDS_RESET != 0
    }

    /// A digest of the device's state.
    pub(crate) fn state_hash(&self) -> u64 {
        let mut h = DefaultHasher::new();
        self.device.hash_state(&mut h);
        h.finish()
    }

    /// A digest of all memory.
    pub(crate) fn memory_hash(&self) -> u64 {
        let mut h = DefaultHasher::new();
        self.ram
            .for_each_page(|number, page| {
                if page != &[0; 4096] {
                    h.write_u64(number);
                    h.write(page);
                }
            })
            .unwrap();
        h.finish()
    }
}
