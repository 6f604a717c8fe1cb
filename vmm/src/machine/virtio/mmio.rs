//! The virtio-mmio transport, register layout version 2 (virtio 1.3, section 4.2.2).
//!
//! Registers are accessed with 4 bytes, aligned; the configuration space behind them with 1, 2, 4 or 8. Any other
//! access reads zeros and writes nothing, as does a register that there is not.

use std::hash::{Hash, Hasher};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};

use super::blk::{Blk, CompletionError};
use super::device::VirtioDevice;
use super::net::{Net, RxOutcome, TX};
use super::queue::{Part, QueueError, VirtQueue};
use super::{IRQS, MAX_SLOTS, SLOT_SIZE, slot_address};
use crate::machine::cpu::exit::Exit;
use crate::machine::input::DiskStatus;
use crate::machine::memory::GuestMemory;
use crate::machine::output::Outputs;
use crate::machine::time::VirtualTime;

/// "virt", what a driver looks for.
const MAGIC: u32 = 0x7472_6976;
/// Register layout of virtio 1.0 and later.
const VERSION: u32 = 2;
/// "TNDM".
const VENDOR: u32 = u32::from_le_bytes(*b"TNDM");

/// Status bits that a driver sets.
const DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED;

/// What changes while the device runs, on the transport's side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    interrupt_status: u32,
    queues: Vec<VirtQueue>,
    fault: Option<QueueError>,
}

impl State {
    fn power_on(device: &VirtioDevice) -> Self {
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            interrupt_status: 0,
            queues: device.queue_sizes().iter().map(|&size| VirtQueue::new(size)).collect(),
            fault: None,
        }
    }

    /// Whether the device may use its queues.
    fn running(&self) -> bool {
        self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET) == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Whether the device may use queue `queue`.
    fn usable(&self, queue: usize) -> bool {
        self.running() && self.queues.get(queue).is_some_and(VirtQueue::ready)
    }

    fn selected(&mut self) -> Option<&mut VirtQueue> {
        self.queues.get_mut(self.queue_sel as usize)
    }
}

/// There is no such slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("virtio slot {0}: a machine has {MAX_SLOTS} of them; configure fewer devices")]
pub struct NoSuchSlot(pub usize);

/// A virtio device at its place in the machine.
#[derive(Debug)]
pub struct VirtioMmio {
    slot: usize,
    irq: u8,

    device: VirtioDevice,

    state: State,
}

impl VirtioMmio {
    /// Puts `device` into slot `slot`, counted from zero: its address is [`slot_address`], its interrupt line
    /// [`IRQS`]`[slot]`.
    ///
    /// # Errors
    /// [`NoSuchSlot`] from [`MAX_SLOTS`] on.
    pub fn new(slot: usize, device: VirtioDevice) -> Result<Self, NoSuchSlot> {
        let irq = *IRQS.get(slot).ok_or(NoSuchSlot(slot))?;
        let state = State::power_on(&device);
        Ok(Self { slot, irq, device, state })
    }

    /// Guest physical address of the registers, [`SLOT_SIZE`] bytes of them.
    #[must_use]
    pub fn address(&self) -> u64 {
        slot_address(self.slot)
    }

    /// The 8259 line, 0 to 15.
    #[must_use]
    pub fn irq(&self) -> u8 {
        self.irq
    }

    /// Whether a driver notifies queues by writing there.
    #[must_use]
    pub fn is_notified_at(&self, address: u64) -> bool {
        address == self.address() + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)
    }

    /// Level of the interrupt line.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.state.interrupt_status != 0
    }

    /// How a Linux guest is told of the device, to be put on its command line.
    #[must_use]
    pub fn command_line(&self) -> String {
        format!("virtio_mmio.device={}K@{:#x}:{}", SLOT_SIZE / 1024, self.address(), self.irq)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &VirtioDevice {
        &self.device
    }

    /// The device, if it is a network device.
    #[must_use]
    pub fn net(&self) -> Option<&Net> {
        if let VirtioDevice::Net(net) = &self.device { Some(net) } else { None }
    }

    /// The device, if it is a disk.
    #[must_use]
    pub fn blk(&self) -> Option<&Blk> {
        if let VirtioDevice::Blk(blk) = &self.device { Some(blk) } else { None }
    }

    /// The transport's state.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the guest did that made the device set DEVICE_NEEDS_RESET, until it is reset.
    #[must_use]
    pub fn fault(&self) -> Option<QueueError> {
        self.state.fault
    }

    /// Whether a driver is at work and the queues are in order.
    #[must_use]
    pub fn running(&self) -> bool {
        self.state.running()
    }

    /// Feeds all volatile state, transport and device, to a digest.
    pub fn hash_state(&self, h: &mut impl Hasher) {
        self.state.hash(h);
        self.device.hash_state(h);
    }

    /// The guest reads `data.len()` bytes at `offset` from [`VirtioMmio::address`].
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = u32::try_from(offset) else { return };
        if offset >= VIRTIO_MMIO_CONFIG {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                self.device.read_config((offset - VIRTIO_MMIO_CONFIG) as usize, data);
            }
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        let state = &self.state;
        let queue = state.queues.get(state.queue_sel as usize);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match state.device_features_sel {
                0 => self.device.features() as u32,
                1 => (self.device.features() >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            VIRTIO_MMIO_INTERRUPT_STATUS => state.interrupt_status,
            VIRTIO_MMIO_STATUS => state.status,
            // No shared memory region: its length and base read as all ones (section 4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // The configuration space never changes.
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    /// The guest writes `data` at `offset` from [`VirtioMmio::address`].
    pub fn write(&mut self, offset: u64, data: &[u8], mem: &GuestMemory, outputs: &mut dyn Outputs) {
        // Registers only: no device has anything to write in its configuration space.
        let (Ok(offset), Ok(value)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else { return };
        let value = u32::from_le_bytes(value);
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.state.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.state.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.state.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM => {
                if let Some(queue) = self.state.selected() {
                    queue.set_size(value);
                }
            }
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value, mem),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value as usize, mem, outputs),
            VIRTIO_MMIO_INTERRUPT_ACK => self.state.interrupt_status &= !value,
            VIRTIO_MMIO_STATUS => self.write_status(value, mem, outputs),
            VIRTIO_MMIO_QUEUE_DESC_LOW => self.write_address(Part::DescriptorTable, false, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => self.write_address(Part::DescriptorTable, true, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.write_address(Part::AvailableRing, false, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.write_address(Part::AvailableRing, true, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => self.write_address(Part::UsedRing, false, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_address(Part::UsedRing, true, value),
            _ => {}
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        let features = &mut self.state.driver_features;
        match self.state.driver_features_sel {
            0 => *features = *features & !0xffff_ffff | value,
            1 => *features = *features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn write_address(&mut self, part: Part, high_half: bool, value: u32) {
        if let Some(queue) = self.state.selected() {
            queue.set_address(part, high_half, value);
        }
    }

    fn write_queue_ready(&mut self, value: u32, mem: &GuestMemory) {
        let status = self.state.status;
        let features = self.state.driver_features;
        let Some(queue) = self.state.selected() else { return };
        if value == 0 {
            if queue.ready() {
                queue.disable();
                self.device.queue_stopped();
            }
        } else if status & (VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_NEEDS_RESET)
            == VIRTIO_CONFIG_S_FEATURES_OK
            && let Err(fault) = queue.enable(mem, features)
        {
            self.fail(fault);
        }
    }

    fn write_status(&mut self, value: u32, mem: &GuestMemory, outputs: &mut dyn Outputs) {
        if value == 0 {
            self.device.reset();
            self.state = State::power_on(&self.device);
            self.tell_offloads(outputs);
            return;
        }
        let before = self.state.status;
        let mut set = value & DRIVER_BITS & !before;
        let features = self.state.driver_features;
        if features & !self.device.features() != 0 || features & 1 << VIRTIO_F_VERSION_1 == 0 {
            set &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if (before | set) & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            set &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.state.status |= set;
        if set & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.device.activate(features);
            self.tell_offloads(outputs);
            // Whatever the driver made available before it said so.
            for queue in 0..self.state.queues.len() {
                self.notify(queue, mem, outputs);
            }
        }
    }

    /// The host hears what a network driver can do with packets.
    fn tell_offloads(&self, outputs: &mut dyn Outputs) {
        if let Some(net) = self.net() {
            outputs.offloads(net.nic(), net.state().to_guest);
        }
    }

    fn notify(&mut self, queue: usize, mem: &GuestMemory, outputs: &mut dyn Outputs) {
        if self.state.usable(queue) {
            let result = self.device.notify(queue, &mut self.state.queues, mem, outputs);
            self.settle(result);
        }
    }

    /// The guest has an exit at `now`, which is going to be emulated.
    pub fn exited(&mut self, now: VirtualTime, exit: &Exit) {
        let at = self.address() + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
        if let VirtioDevice::Net(net) = &mut self.device {
            net.exit(
                now,
                matches!(*exit, Exit::MmioWrite { address, data, .. } if address == at && data == TX as u64),
            );
        }
    }

    /// The guest's wait for an interrupt ends.
    pub fn wakes(&mut self, now: VirtualTime) {
        if let VirtioDevice::Net(net) = &mut self.device {
            net.wakes(now);
        }
    }

    /// The guest was stopped where it has no exit.
    pub fn forced_stop(&mut self, now: VirtualTime) {
        if let VirtioDevice::Net(net) = &mut self.device {
            net.forced_stop(now);
        }
    }

    /// The guest stands at an exit or a forced stop: sends what a network driver has queued, if it was asked not to notify
    /// of it. Whether it looked, so that its interrupt may be another.
    pub fn look(&mut self, mem: &GuestMemory, outputs: &mut dyn Outputs) -> bool {
        if let VirtioDevice::Net(net) = &mut self.device
            && net.is_polled()
            && self.state.usable(TX)
        {
            let result = net.look(&mut self.state.queues[TX], mem, outputs);
            self.settle(result);
            return true;
        }
        false
    }

    /// Whether [`VirtioMmio::look`] would send something now.
    #[must_use]
    pub fn holds_packets(&self, mem: &GuestMemory) -> bool {
        self.net().is_some_and(|net| net.holds_packets(&self.state.queues, mem) && self.state.usable(TX))
    }

    /// A packet arrived for this network device: a header of [`offload::HEADER_LEN`](super::net::offload::HEADER_LEN)
    /// bytes, and a frame.
    pub fn receive(&mut self, packet: &[u8], mem: &GuestMemory) -> RxOutcome {
        let usable = self.state.usable(0);
        let VirtioDevice::Net(net) = &mut self.device else { return RxOutcome::DeviceDown };
        if !usable {
            return RxOutcome::DeviceDown;
        }
        match net.receive(packet, &mut self.state.queues, mem) {
            Ok((outcome, interrupt)) => {
                self.settle(Ok(interrupt));
                outcome
            }
            Err(fault) => {
                self.fail(fault);
                RxOutcome::DeviceDown
            }
        }
    }

    /// Whether a packet should be given to [`VirtioMmio::receive`] now. If not, it would be dropped, for want of a
    /// buffer or of a driver that can read it: a host need not log it.
    #[must_use]
    pub fn can_receive(&self, packet: &[u8], mem: &GuestMemory) -> bool {
        self.net().is_some_and(|net| self.state.usable(0) && net.can_receive(packet, &self.state.queues, mem))
    }

    /// A disk request is complete: its data reaches guest memory now. Requests that waited for room go out.
    ///
    /// # Errors
    /// If nothing in flight fits; the device is unchanged then.
    pub fn complete(
        &mut self,
        tag: u64,
        status: DiskStatus,
        data: &[u8],
        mem: &GuestMemory,
        outputs: &mut dyn Outputs,
    ) -> Result<(), CompletionError> {
        let usable = self.state.usable(0);
        let VirtioDevice::Blk(blk) = &mut self.device else { return Err(CompletionError::NoDisk) };
        blk.check_completion(tag, status, data)?;
        let queue = self.state.queues.first_mut().filter(|_| usable).map(|queue| (queue, mem));
        let result = blk.complete(tag, status, data, queue, outputs);
        self.settle(result);
        Ok(())
    }

    /// Bytes were typed at this console. Returns how many there was room for; the rest is lost.
    pub fn type_in(&mut self, bytes: &[u8], mem: &GuestMemory) -> usize {
        let usable = self.state.usable(0);
        let VirtioDevice::Console(console) = &mut self.device else { return 0 };
        let taken = console.type_in(bytes);
        if usable && let Some(queue) = self.state.queues.first_mut() {
            let result = console.deliver(queue, mem);
            self.settle(result);
        }
        taken
    }

    fn settle(&mut self, result: Result<bool, QueueError>) {
        match result {
            Ok(true) => self.state.interrupt_status |= VIRTIO_MMIO_INT_VRING,
            Ok(false) => {}
            Err(fault) => self.fail(fault),
        }
    }

    /// The guest broke a queue (virtio 1.3, section 2.1.2).
    fn fail(&mut self, fault: QueueError) {
        self.state.fault = Some(fault);
        self.state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.state.interrupt_status |= VIRTIO_MMIO_INT_CONFIG;
        }
    }
}
