//! What leaves the machine.
//!
//! The machine hands each output to an `Outputs` sink, during the exit that made it. The sink
//! belongs to an outer ring: solo it goes out at once, on a primary it waits at the output gate, on a
//! backup it is dropped.

use super::virtio::net::offload::Offloads;
pub use super::virtio::net::packet::Packet;

/// Receives what the machine sends out. Called on the vCPU thread: no implementation may block.
pub trait Outputs {
    /// A packet from a network device (`nic` counted from zero).
    fn packet(&mut self, nic: u8, packet: &Packet<'_>);
    /// From now on a network device can do this with packets for it. Nothing of it leaves the host.
    fn offloads(&mut self, nic: u8, to_guest: Offloads);
    /// A disk request. Its completion comes back as [`super::input::Input::DiskDone`].
    fn disk(&mut self, request: DiskRequest<'_>);
    /// One byte from the serial line.
    fn serial(&mut self, byte: u8);
    /// Bytes from the virtio console.
    fn console(&mut self, bytes: &[u8]);
    /// Something for the operator, once each.
    fn notice(&mut self, _notice: Notice) {}
}

/// A sink that drops everything: a backup's outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped;

impl Outputs for Dropped {
    fn packet(&mut self, _nic: u8, _packet: &Packet<'_>) {}
    fn offloads(&mut self, _nic: u8, _to_guest: Offloads) {}
    fn disk(&mut self, _request: DiskRequest<'_>) {}
    fn serial(&mut self, _byte: u8) {}
    fn console(&mut self, _bytes: &[u8]) {}
}

/// What an operator may want to know about the guest's doings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notice {
    /// No device answers at this port; reads give ones.
    UnclaimedPort {
        /// The port.
        port: u16,
        /// Whether it was written.
        write: bool,
    },
    /// Neither RAM nor a device is at this page; reads give ones.
    UnclaimedAddress {
        /// Guest physical page number.
        page: u64,
        /// Whether it was written.
        write: bool,
    },
    /// An MSR that this CPU does not have: the guest got #GP.
    UnknownMsr {
        /// Its index.
        index: u32,
    },
}

/// One disk request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRequest<'a> {
    /// Which virtio-blk device, counted from zero in configuration order.
    pub disk: u8,
    /// Names the request; unique per device for the life of the machine, rising by one.
    pub tag: u64,
    /// What to do.
    pub op: DiskOp<'a>,
}

/// What a disk request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp<'a> {
    /// Read `len` bytes at byte `offset`.
    Read {
        /// Byte offset on the disk, a multiple of 512.
        offset: u64,
        /// Bytes to read, a multiple of 512.
        len: u32,
    },
    /// Write `data` at byte `offset`.
    Write {
        /// Byte offset on the disk, a multiple of 512.
        offset: u64,
        /// A private copy of what the guest asked to write: it may change its memory right after.
        data: &'a [u8],
    },
    /// Make all completed writes durable.
    Flush,
}

/// The guest's own wish about its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Power off, or a halt with interrupts disabled that nothing can end.
    Off,
    /// Reset: by the i8042, by port 0xcf9, or by a triple fault.
    Reset,
}
