//! The network device as a [`Device`] of smoltcp: frames are read and written where the device reads and
//! writes them, without a copy.

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::Registers;
use super::queue::{MAX_SIZE, PARTS, Queue, Rings};
use super::registers as reg;

const DEVICE_ID: u32 = 1;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_EVENT_IDX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;

/// The header before each frame (section 5.1.6): without offloads it is all zero and of no interest.
const HEADER: usize = 12;

/// Longest frame without its checksum.
const FRAME: usize = 1514;

/// A header and a frame, rounded up to whole cache lines.
const BUFFER: usize = 1536;

type Buffers = Box<[[u8; BUFFER]]>;

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no network device at these registers.
    NoNetworkDevice,
    /// It lacks VIRTIO_F_VERSION_1 or VIRTIO_NET_F_MAC.
    FeatureMissing,
    /// It does not take the features it offered.
    FeaturesRefused,
    /// A queue of it has no room.
    NoQueue,
    /// Memory does not suffice for its buffers.
    OutOfMemory,
}

impl Unusable {
    /// The reason in words.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::NoNetworkDevice => "no virtio network device (version 2) there",
            Self::FeatureMissing => "the network device lacks VERSION_1 or MAC",
            Self::FeaturesRefused => "the network device refuses the features it offers",
            Self::NoQueue => "the network device has no queues",
            Self::OutOfMemory => "not enough memory for the network buffers",
        }
    }
}

/// A running network device.
pub struct Net<R> {
    registers: R,
    mac: [u8; 6],
    receive: Receive,
    transmit: Transmit,
}

struct Receive {
    queue: Queue,
    buffers: Buffers,
}

struct Transmit {
    queue: Queue,
    buffers: Buffers,
    free: Vec<u16>,
}

/// Whether there is a network device at these registers.
#[must_use]
pub fn is_network(registers: &impl Registers) -> bool {
    registers.read(reg::MAGIC) == reg::MAGIC_VALUE
        && registers.read(reg::VERSION) == reg::VERSION_VALUE
        && registers.read(reg::DEVICE_ID) == DEVICE_ID
}

impl<R: Registers> Net<R> {
    /// Starts the device (section 3.1). Physical addresses are taken to equal virtual ones.
    ///
    /// # Errors
    /// [`Unusable`]
    pub fn start(mut registers: R) -> Result<Self, Unusable> {
        if !is_network(&registers) {
            return Err(Unusable::NoNetworkDevice);
        }
        registers.write(reg::STATUS, 0);
        registers.write(reg::STATUS, reg::ACKNOWLEDGE | reg::DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            registers.write(reg::DEVICE_FEATURES_SELECT, half);
            offered |= u64::from(registers.read(reg::DEVICE_FEATURES)) << (32 * half);
        }
        let needed = FEATURE_VERSION_1 | FEATURE_MAC;
        if offered & needed != needed {
            return Err(Unusable::FeatureMissing);
        }
        let taken = offered & (needed | FEATURE_EVENT_IDX);
        for half in 0..2 {
            registers.write(reg::DRIVER_FEATURES_SELECT, half);
            registers.write(reg::DRIVER_FEATURES, (taken >> (32 * half)) as u32);
        }
        registers.write(reg::STATUS, reg::ACKNOWLEDGE | reg::DRIVER | reg::FEATURES_OK);
        if registers.read(reg::STATUS) & reg::FEATURES_OK == 0 {
            return Err(Unusable::FeaturesRefused);
        }
        let event_idx = taken & FEATURE_EVENT_IDX != 0;
        let mut receive =
            Receive { queue: start_queue(&mut registers, RECEIVE, event_idx)?, buffers: buffers()? };
        let mut transmit = Transmit {
            queue: start_queue(&mut registers, TRANSMIT, event_idx)?,
            buffers: buffers()?,
            free: Vec::new(),
        };
        transmit.free.try_reserve_exact(usize::from(MAX_SIZE)).map_err(|_| Unusable::OutOfMemory)?;
        for id in 0..receive.queue.size() {
            let address = receive.buffers[usize::from(id)].as_ptr() as u64;
            receive.queue.describe(id, address, (HEADER + FRAME) as u32, true);
            receive.queue.offer(id);
        }
        for id in (0..transmit.queue.size()).rev() {
            let address = transmit.buffers[usize::from(id)].as_ptr() as u64;
            transmit.queue.describe(id, address, 0, false);
            transmit.free.push(id);
        }
        let mut mac = [0; 6];
        for (index, byte) in mac.iter_mut().enumerate() {
            *byte = registers.read_byte(reg::CONFIG + index);
        }
        registers.write(reg::STATUS, reg::ACKNOWLEDGE | reg::DRIVER | reg::FEATURES_OK | reg::DRIVER_OK);
        let mut net = Self { registers, mac, receive, transmit };
        net.flush();
        Ok(net)
    }

    /// The address the device was given.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Shows the device all frames to send and all buffers to receive into. Notifies it where it asks for
    /// that: at most once for each of the two queues.
    pub fn flush(&mut self) {
        if self.receive.queue.publish() {
            self.registers.write(reg::QUEUE_NOTIFY, RECEIVE);
        }
        if self.transmit.queue.publish() {
            self.registers.write(reg::QUEUE_NOTIFY, TRANSMIT);
        }
    }

    /// Whether there is something to do: room to send again after there was none, or a frame to receive
    /// and room to answer it.
    #[must_use]
    pub fn is_ready(&mut self) -> bool {
        if self.transmit.free.is_empty() { self.transmit.reclaim() } else { self.receive.queue.has_used() }
    }

    /// Whether there is room for a frame to send, as far as is known.
    #[must_use]
    pub fn can_send(&self) -> bool {
        !self.transmit.free.is_empty()
    }

    /// Asks for an interrupt when [`Self::is_ready`] next becomes true. It must be looked at once more
    /// afterwards.
    pub fn arm(&mut self) {
        self.receive.queue.arm();
        if self.transmit.free.is_empty() {
            self.transmit.queue.arm();
        }
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        self.receive.queue.disarm();
        self.transmit.queue.disarm();
    }

    /// Tells the device that its interrupt was seen.
    pub fn acknowledge(&mut self) {
        self.registers.write(reg::INTERRUPT_ACK, reg::INTERRUPT_USED);
    }
}

fn start_queue(registers: &mut impl Registers, number: u32, event_idx: bool) -> Result<Queue, Unusable> {
    registers.write(reg::QUEUE_SELECT, number);
    let max = registers.read(reg::QUEUE_SIZE_MAX).min(u32::from(MAX_SIZE)) as u16;
    let Some(bits) = max.checked_ilog2() else {
        return Err(Unusable::NoQueue);
    };
    let size = 1 << bits;
    let rings = rings()?;
    registers.write(reg::QUEUE_SIZE, u32::from(size));
    let places = [reg::QUEUE_DESCRIPTORS, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE];
    for (place, part) in places.into_iter().zip(PARTS) {
        let address = core::ptr::from_ref(rings) as u64 + part as u64;
        registers.write(place, address as u32);
        registers.write(place + 4, (address >> 32) as u32);
    }
    registers.write(reg::QUEUE_READY, 1);
    Ok(Queue::new(rings, size, event_idx))
}

/// Zeroed rings that live for ever: the device is never stopped.
fn rings() -> Result<&'static Rings, Unusable> {
    let layout = core::alloc::Layout::new::<Rings>();
    // SAFETY: the layout is not empty, and zero is a value of every field of Rings.
    unsafe { alloc::alloc::alloc_zeroed(layout).cast::<Rings>().as_ref() }.ok_or(Unusable::OutOfMemory)
}

fn buffers() -> Result<Buffers, Unusable> {
    let mut buffers = Vec::new();
    buffers.try_reserve_exact(usize::from(MAX_SIZE)).map_err(|_| Unusable::OutOfMemory)?;
    buffers.resize(usize::from(MAX_SIZE), [0; BUFFER]);
    Ok(buffers.into_boxed_slice())
}

impl Transmit {
    /// Makes sure that there is a free buffer, if the device is done with one.
    fn reclaim(&mut self) -> bool {
        while let Some((id, _)) = self.queue.peek() {
            self.queue.take();
            // The device may name a buffer twice: never keep more than there are.
            if self.free.len() < usize::from(self.queue.size()) {
                self.free.push(id);
            }
        }
        !self.free.is_empty()
    }
}

/// One frame that arrived.
pub struct Received<'a>(&'a mut Receive);

/// Room for one frame to send.
pub struct ToSend<'a>(&'a mut Transmit);

impl RxToken for Received<'_> {
    fn consume<T, F: FnOnce(&[u8]) -> T>(self, use_frame: F) -> T {
        let Some((id, len)) = self.0.queue.peek() else {
            return use_frame(&[]);
        };
        let end = (len as usize).clamp(HEADER, HEADER + FRAME);
        let result = use_frame(&self.0.buffers[usize::from(id)][HEADER..end]);
        self.0.queue.take();
        self.0.queue.offer(id);
        result
    }
}

impl TxToken for ToSend<'_> {
    fn consume<T, F: FnOnce(&mut [u8]) -> T>(self, len: usize, fill: F) -> T {
        let Some(id) = self.0.free.pop() else {
            // No token is given out without a free buffer. If one were, its frame would be lost.
            return fill(&mut [0; FRAME][..len.min(FRAME)]);
        };
        let end = HEADER + len.min(FRAME);
        let result = fill(&mut self.0.buffers[usize::from(id)][HEADER..end]);
        self.0.queue.set_len(id, end as u32);
        self.0.queue.offer(id);
        result
    }
}

impl<R: Registers> Device for Net<R> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        if self.receive.queue.peek().is_none() || !self.transmit.reclaim() {
            return None;
        }
        Some((Received(&mut self.receive), ToSend(&mut self.transmit)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        self.transmit.reclaim().then_some(ToSend(&mut self.transmit))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}
