//! virtio-net (virtio 1.3, section 5.1): one pair of queues.
//!
//! Neither direction allocates. Checksums and segmentation are left to the host where the driver can do without, as
//! the header before each frame says; the device does neither.

/// What is left to the reader of a packet.
pub mod offload;

/// A packet that the guest sends.
pub mod packet;

/// When the transmit queue is looked at.
mod polling;

use std::hash::{Hash, Hasher};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::VolatileSlice;

use self::offload::Offloads;
use self::packet::Packet;
use self::polling::Polling;
use super::chain::Chain;
use super::queue::{QueueError, VirtQueue};
use crate::machine::memory::GuestMemory;
use crate::machine::output::Outputs;
use crate::machine::time::VirtualTime;

/// Entries in each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes of the header before each frame in the queues (`struct virtio_net_hdr_v1`): that of a packet, and
/// `num_buffers`.
pub const HEADER_LEN: usize = offload::HEADER_LEN + 2;

/// Bytes of the shortest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// Bytes of the longest frame: the largest MTU an IP packet can use, and an Ethernet header, rounded up to even.
pub const MAX_FRAME: usize = 65_550;

/// Queue of buffers for frames to the guest.
const RX: usize = 0;
/// Queue of frames from the guest.
pub(super) const TX: usize = 1;

/// What became of a frame for the guest. All but `Delivered` leave guest memory unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RxOutcome {
    /// The guest has it.
    Delivered,
    /// The guest gave no buffer, or too little room; dropped.
    NoBuffer,
    /// No Ethernet frame: shorter than [`MIN_FRAME`] or longer than [`MAX_FRAME`]; dropped.
    BadLength,
    /// Its header asks for what the driver cannot do; dropped. It was read before the driver said so.
    NotNegotiated,
    /// No driver, or the device waits for its reset; dropped.
    DeviceDown,
}

/// What changes while the device runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Whether a frame may be spread over several chains (VIRTIO_NET_F_MRG_RXBUF negotiated).
    pub mergeable: bool,
    /// What the driver can do with packets for it.
    pub to_guest: Offloads,
    /// What the driver may leave to the host.
    pub from_guest: Offloads,
    /// Frames the guest sent.
    pub sent: u64,
    /// Frames the guest was given.
    pub delivered: u64,
    /// Frames dropped while the guest's driver was there: to it, for want of room; from it, for being no frame.
    pub dropped: u64,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    nic: u8,
    mac: [u8; 6],

    chain: Chain,

    state: State,
    polling: Polling,
}

impl Net {
    /// Network device number `nic` (counted from zero) with a MAC address.
    #[must_use]
    pub fn new(nic: u8, mac: [u8; 6]) -> Self {
        Self {
            nic,
            mac,
            chain: Chain::with_room_for(QUEUE_SIZE),
            state: State::default(),
            polling: Polling::default(),
        }
    }

    /// The same, for a driver that never notifies the transmit queue: the device looks at it at every exit.
    #[must_use]
    pub fn polled(self) -> Self {
        Self { polling: Polling::always(), ..self }
    }

    /// Which network device this is, counted from zero.
    #[must_use]
    pub fn nic(&self) -> u8 {
        self.nic
    }

    /// What changes while the device runs.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many times the device began to look at its transmit queue at every exit.
    #[must_use]
    pub fn polls_begun(&self) -> u64 {
        self.polling.begun()
    }

    pub(super) const QUEUES: &'static [u16] = &[QUEUE_SIZE; 2];

    pub(super) fn features() -> u64 {
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF | Offloads::features()
    }

    /// `struct virtio_net_config`: mac, status.
    pub(super) fn config(&self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.mac;
        let [low, high] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        [a, b, c, d, e, f, low, high]
    }

    pub(super) fn activate(&mut self, features: u64) {
        self.state.mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.state.to_guest = Offloads::to_guest(features);
        self.state.from_guest = Offloads::from_guest(features);
    }

    pub(super) fn reset(&mut self) {
        self.activate(0);
        self.polling.reset();
    }

    pub(super) fn hash_state(&self, h: &mut impl Hasher) {
        self.state.hash(h);
        self.polling.hash(h);
    }

    /// The driver notified `queue`. True: interrupt it.
    pub(super) fn notify(
        &mut self,
        queue: usize,
        queues: &mut [VirtQueue],
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        match queue {
            RX => queues[RX].ask_for_kick_if_empty(mem).map(|()| false),
            TX => self.look(&mut queues[TX], mem, outputs),
            _ => Ok(false),
        }
    }

    /// Whether the driver has queued packets that it does not notify of. True too if the queue is corrupt, which is found
    /// where the device looks at it.
    pub(super) fn holds_packets(&self, queues: &[VirtQueue], mem: &GuestMemory) -> bool {
        self.is_polled() && queues[TX].pending(mem) != Ok(0)
    }

    /// The guest has an exit, `notifies` telling whether it notifies the transmit queue.
    pub(super) fn exit(&mut self, now: VirtualTime, notifies: bool) {
        self.polling.exit(now, notifies);
    }

    /// The guest's wait for an interrupt ends.
    pub(super) fn wakes(&mut self, now: VirtualTime) {
        self.polling.wakes(now);
    }

    /// The guest was stopped where it has no exit.
    pub(super) fn forced_stop(&mut self, now: VirtualTime) {
        self.polling.forced_stop(now);
    }

    /// Whether the driver does not notify the transmit queue, since the device looks at it at every exit and forced stop.
    pub(super) const fn is_polled(&self) -> bool {
        self.polling.is_quiet()
    }

    /// Sends what is in the transmit queue. True: interrupt the driver.
    pub(super) fn look(
        &mut self,
        queue: &mut VirtQueue,
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<bool, QueueError> {
        let packets = queue.pending(mem)?;
        if packets == 0 && self.is_polled() && self.polling.look() {
            return Ok(false);
        }
        let bytes = self.transmit(packets, queue, mem, outputs)?;
        self.polling.found(packets, bytes);
        if self.polling.look() {
            queue.ask_for_no_kick(mem)?;
        } else {
            queue.ask_for_kick(mem)?;
        }
        queue.wants_interrupt(mem)
    }

    /// Sends so many of the queue's packets. How many bytes they had.
    fn transmit(
        &mut self,
        packets: u16,
        queue: &mut VirtQueue,
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<u64, QueueError> {
        if packets == 0 {
            return Ok(0);
        }
        let rings = queue.rings(mem)?;
        let sent = (0..packets).try_fold(0, |bytes, _| {
            let only = queue.take(&rings, &mut self.chain)?;
            let len = self.send(mem, only, outputs)?;
            queue.put_used(&rings, self.chain.head(), 0)?;
            Ok(bytes + len as u64)
        });
        queue.show_used(&rings)?;
        sent
    }

    /// Sends what is in the chain; `only`: as of [`VirtQueue::take`]. How many bytes it has.
    fn send(
        &mut self,
        mem: &GuestMemory,
        only: Option<VolatileSlice<'_>>,
        outputs: &mut dyn Outputs,
    ) -> Result<usize, QueueError> {
        let (chain, short) = (&self.chain, QueueError::ShortChain { head: self.chain.head() });
        let len = (chain.readable_len() as usize).checked_sub(HEADER_LEN).ok_or(short)?;
        if len > MAX_FRAME {
            return Err(QueueError::OversizeChain { head: chain.head() });
        }
        let readable = chain.readable_in(mem, only);
        let mut header = offload::COMPLETE;
        readable.gather(0, &mut header)?;
        match self.state.from_guest.sent(header, len).filter(|_| len >= MIN_FRAME) {
            Some(header) => {
                let packet = Packet::in_memory(header, &readable, HEADER_LEN as u32, len);
                outputs.packet(self.nic, &packet.ok_or(short)?);
                self.state.sent += 1;
            }
            None => self.state.dropped += 1,
        }
        Ok(len)
    }

    /// Whether [`Net::receive`], with a ready queue as that, would deliver this packet. True too if it would find the queue
    /// corrupt: the packet must then be delivered, so that both sides find it at the same position.
    pub(super) fn can_receive(&self, packet: &[u8], queues: &[VirtQueue], mem: &GuestMemory) -> bool {
        self.admit(packet).is_ok_and(|(_, frame)| {
            let queue = &queues[RX];
            let chains = queue
                .rings(mem)
                .and_then(|rings| queue.chains_for(&rings, HEADER_LEN + frame.len(), self.max_chains()));
            chains != Ok(None)
        })
    }

    /// The header for the driver, and the frame.
    fn admit<'a>(&self, packet: &'a [u8]) -> Result<([u8; offload::HEADER_LEN], &'a [u8]), RxOutcome> {
        let (header, frame) = packet.split_first_chunk().ok_or(RxOutcome::BadLength)?;
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Err(RxOutcome::BadLength);
        }
        let header = self.state.to_guest.received(*header, frame.len());
        Ok((header.ok_or(RxOutcome::NotNegotiated)?, frame))
    }

    /// A packet arrived. True beside the outcome: interrupt the driver.
    pub(super) fn receive(
        &mut self,
        packet: &[u8],
        queues: &mut [VirtQueue],
        mem: &GuestMemory,
    ) -> Result<(RxOutcome, bool), QueueError> {
        let (left, frame) = match self.admit(packet) {
            Ok(admitted) => admitted,
            Err(outcome) => {
                self.state.dropped += 1;
                return Ok((outcome, false));
            }
        };
        let queue = &mut queues[RX];
        let rings = queue.rings(mem)?;
        let Some(chains) = queue.chains_for(&rings, HEADER_LEN + frame.len(), self.max_chains())? else {
            self.state.dropped += 1;
            queue.ask_for_kick(mem)?;
            return Ok((RxOutcome::NoBuffer, false));
        };
        let mut header = [0; HEADER_LEN];
        header[..left.len()].copy_from_slice(&left);
        header[left.len()..].copy_from_slice(&chains.to_le_bytes());
        let mut rest = frame;
        for n in 0..chains {
            // Another than was counted, if the frame was written over the ring that it is described in.
            queue.take(&rings, &mut self.chain)?;
            let mut room = self.chain.writable_len() as usize;
            let mut offset = 0;
            if n == 0 {
                offset = HEADER_LEN.min(room);
                self.chain.scatter(mem, 0, &header[..offset])?;
                room -= offset;
                if offset < HEADER_LEN {
                    return Err(QueueError::ShortChain { head: self.chain.head() });
                }
            }
            let (part, later) = rest.split_at(rest.len().min(room));
            self.chain.scatter(mem, offset as u32, part)?;
            rest = later;
            queue.put_used(&rings, self.chain.head(), (offset + part.len()) as u32)?;
        }
        queue.show_used(&rings)?;
        if !rest.is_empty() {
            return Err(QueueError::ShortChain { head: self.chain.head() });
        }
        self.state.delivered += 1;
        queue.ask_for_kick_if_empty(mem)?;
        Ok((RxOutcome::Delivered, queue.wants_interrupt(mem)?))
    }

    fn max_chains(&self) -> u16 {
        if self.state.mergeable { QUEUE_SIZE } else { 1 }
    }
}
