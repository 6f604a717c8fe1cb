//! The board: which device answers which address, and which line its interrupt takes.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use super::cpu::exit::Exit;
use super::devices::doorbell;
use super::devices::hpet::Hpet;
use super::devices::i8042::I8042;
use super::devices::pic::Pic;
use super::devices::pit::Pit;
use super::devices::pm1::Pm1;
use super::devices::pmtimer::{PmTimer, Width};
use super::devices::reset::ResetControl;
use super::devices::rtc::{MemorySize, Rtc};
use super::devices::serial::Serial;
use super::devices::{Effect, PortDevice};
use super::input::Input;
use super::memory::{GuestMemory, GuestRam, MMIO_START};
use super::output::{DiskRequest, Notice, Outputs, PowerEvent};
use super::ports::{PortOwner, PortOwners};
use super::time::VirtualTime;
use super::virtio::SLOT_SIZE;
use super::virtio::blk::CompletionError;
use super::virtio::device::VirtioDevice;
use super::virtio::mmio::{NoSuchSlot, VirtioMmio};
use super::virtio::net::offload::Offloads;
use super::virtio::net::{Net, RxOutcome};

/// When the guest reads a clock, and how.
mod clock;

/// Exits that the guest is spared.
mod sparing;

/// Interrupt lines of the fixed devices (IBM PC/AT).
mod irq {
    pub(super) const TIMER: u8 = 0;
    pub(super) const SERIAL: u8 = 4;
    pub(super) const RTC: u8 = 8;
}

/// Where the embedded guest's doorbell page lies, guest physical.
pub const DOORBELL_ADDRESS: u64 = 0xd00f_f000;
/// Bytes of the doorbell page.
const DOORBELL_LEN: u64 = 0x1000;

/// What a PC's firmware writes to the 8254: counter 0 goes round, 18.2 times a second. A kernel that chooses its own address
/// by chance, without RDRAND and TSC, reads that counter, and waits for ever for one that nobody has started
/// (`i8254` of arch/x86/lib/kaslr.c). No tick comes of it before the guest touches a timer.
const FIRMWARE_TIMER: [(u16, u8); 3] = [(0x43, 0x36), (0x40, 0), (0x40, 0)];

/// Different unclaimed addresses that are remembered, so that a guest that scans cannot fill memory.
const UNCLAIMED_LIMIT: usize = 1024;

/// An input that the board cannot take: the log is not this machine's.
#[derive(Debug, Error)]
pub enum InputError {
    /// There is no such device.
    #[error("an input is for {kind} {number}, which this machine does not have")]
    NoDevice {
        /// What kind of device.
        kind: &'static str,
        /// Its number.
        number: u8,
    },
    /// A disk completion does not fit the request.
    #[error("a disk completion does not fit")]
    Completion(#[from] CompletionError),
    /// Time would run backwards.
    #[error("virtual time would go back from {now} to {then} ns")]
    TimeReversed {
        /// Current virtual time in nanoseconds.
        now: u64,
        /// The time of the input in nanoseconds.
        then: u64,
    },
}

/// What a write to a device asks of the machine as a whole.
pub(super) type Power = Option<PowerEvent>;

fn carry_out(effect: Effect, out: &mut dyn Outputs) -> Power {
    match effect {
        Effect::Serial(byte) => {
            out.serial(byte);
            None
        }
        Effect::Power(event) => Some(event),
    }
}

/// All devices and the interrupt lines between them.
#[derive(Debug)]
pub struct Board {
    now: VirtualTime,
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    serial: Serial,
    i8042: I8042,
    reset: ResetControl,
    pm1: Pm1,
    pm_timer: PmTimer,
    hpet: Option<Hpet>,
    virtio: Vec<VirtioMmio>,
    /// Whether there is a doorbell page: for the embedded guest only.
    doorbell: bool,
    /// Whether a frame came in since the guest last returned from the doorbell.
    frame_came: bool,
    unclaimed: BTreeSet<Notice>,
    /// Who answers each port.
    owners: PortOwners,
    /// When a timer fires next: looked for when one was touched or has fired, asked for at every point.
    deadline: Option<VirtualTime>,
}

impl Board {
    /// A board with the fixed devices and `virtio` devices in slot order. `wall_clock`: unix seconds at
    /// power-on. `doorbell`: with the embedded guest's doorbell page; `hpet`: with that timer.
    ///
    /// # Errors
    /// When there are more devices than slots.
    pub fn new(
        wall_clock: u64,
        ram: &GuestRam,
        virtio: Vec<VirtioDevice>,
        doorbell: bool,
        hpet: bool,
    ) -> Result<Self, NoSuchSlot> {
        let below_4g = ram.size().min(MMIO_START);
        let memory = MemorySize { below_4g, above_4g: ram.size() - below_4g };
        let virtio =
            virtio.into_iter().enumerate().map(|(i, d)| VirtioMmio::new(i, d)).collect::<Result<_, _>>()?;
        let mut board = Self {
            now: VirtualTime::ZERO,
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(wall_clock, memory),
            serial: Serial::new(),
            i8042: I8042::new(),
            reset: ResetControl::new(),
            pm1: Pm1::new(),
            pm_timer: PmTimer::new(Width::Bits24),
            hpet: hpet.then(Hpet::new),
            virtio,
            doorbell,
            frame_came: false,
            unclaimed: BTreeSet::new(),
            owners: PortOwners::default(),
            deadline: None,
        };
        for owner in PortOwner::ALL {
            let ports = board.port_device(owner).ports();
            board.owners.claim(owner, ports);
        }
        for (port, value) in FIRMWARE_TIMER {
            // No write to a timer has an effect beyond it.
            let _ = board.pit.write_byte(VirtualTime::ZERO, port, value);
        }
        Ok(board)
    }

    /// Virtual time.
    #[must_use]
    pub const fn now(&self) -> VirtualTime {
        self.now
    }

    /// When a timer fires next, if nothing else happens.
    #[must_use]
    pub const fn deadline(&self) -> Option<VirtualTime> {
        self.deadline
    }

    /// Whether an interrupt waits to be taken.
    #[must_use]
    pub fn interrupt_pending(&self) -> bool {
        self.pic.pending()
    }

    /// Whether the doorbell returns: an interrupt waits, or a frame came in, for which the guest does not
    /// ask for an interrupt.
    #[must_use]
    pub(super) fn doorbell_returns(&self) -> bool {
        self.frame_came || self.pic.pending()
    }

    /// The guest returns from the doorbell.
    pub(super) fn idle_ends(&mut self) {
        self.frame_came = false;
    }

    /// Takes the interrupt that waits; its vector.
    pub fn acknowledge_interrupt(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// Text for the guest's command line that names the virtio devices.
    #[must_use]
    pub fn command_line(&self) -> String {
        self.virtio.iter().map(VirtioMmio::command_line).collect::<Vec<_>>().join(" ")
    }

    fn port_device(&mut self, owner: PortOwner) -> &mut dyn PortDevice {
        match owner {
            PortOwner::Pic => &mut self.pic,
            PortOwner::Pit => &mut self.pit,
            PortOwner::Serial => &mut self.serial,
            PortOwner::PmTimer => &mut self.pm_timer,
            PortOwner::Rtc => &mut self.rtc,
            PortOwner::I8042 => &mut self.i8042,
            PortOwner::Reset => &mut self.reset,
            PortOwner::Pm1 => &mut self.pm1,
        }
    }

    /// Whether emulating this exit puts out what the guest has queued: packets, disk requests.
    #[must_use]
    pub fn kicks_off(&self, exit: &Exit, memory: &GuestMemory) -> bool {
        let notifies = |address| self.virtio.iter().any(|slot| slot.is_notified_at(address));
        matches!(*exit, Exit::MmioWrite { address, .. } if notifies(address)) || self.holds_packets(memory)
    }

    /// IN.
    pub(super) fn port_in(&mut self, port: u16, data: &mut [u8], out: &mut dyn Outputs) {
        match self.owners.of(port) {
            // Most reads of a port are of this one, and change nothing.
            Some(PortOwner::PmTimer) => self.pm_timer.read(self.now, port, data),
            Some(owner) => {
                let now = self.now;
                self.touch(owner, |device| device.read(now, port, data));
            }
            None => {
                data.fill(0xff);
                self.unclaimed(Notice::UnclaimedPort { port, write: false }, out);
            }
        }
    }

    /// OUT.
    pub(super) fn port_out(&mut self, port: u16, data: &[u8], out: &mut dyn Outputs) -> Power {
        let Some(owner) = self.owners.of(port) else {
            self.unclaimed(Notice::UnclaimedPort { port, write: true }, out);
            return None;
        };
        let now = self.now;
        let effect = self.touch(owner, |device| device.write(now, port, data));
        effect.and_then(|effect| carry_out(effect, out))
    }

    /// Lets the guest at a device, and carries to the interrupt controller what comes of it.
    fn touch<T>(&mut self, owner: PortOwner, access: impl FnOnce(&mut dyn PortDevice) -> T) -> T {
        let timer = matches!(owner, PortOwner::Pit | PortOwner::Rtc);
        if timer {
            // It has not been looked at since it fired last.
            self.advance_timers();
        }
        let result = access(self.port_device(owner));
        if timer {
            // One that was reprogrammed may raise or drop its output at once.
            self.advance_timers();
        }
        if matches!(owner, PortOwner::Serial | PortOwner::Rtc) {
            self.update_lines();
        }
        result
    }

    fn virtio_at(&mut self, address: u64) -> Option<(&mut VirtioMmio, u64)> {
        self.virtio.iter_mut().find_map(|slot| {
            let offset = address.checked_sub(slot.address()).filter(|offset| *offset < SLOT_SIZE)?;
            Some((slot, offset))
        })
    }

    /// Offset of `address` in the doorbell page.
    fn doorbell_offset(&self, address: u64) -> Option<u64> {
        if !self.doorbell {
            return None;
        }
        address.checked_sub(DOORBELL_ADDRESS).filter(|offset| *offset < DOORBELL_LEN)
    }

    /// Whether a read of `size` bytes at `address` waits for an interrupt.
    pub(super) fn is_idle_read(&self, address: u64, size: usize) -> bool {
        self.doorbell_offset(address).is_some_and(|offset| doorbell::is_idle(offset, size))
    }

    /// A read outside RAM.
    pub(super) fn mmio_read(&mut self, address: u64, data: &mut [u8], out: &mut dyn Outputs) {
        let now = self.now;
        if let Some(offset) = self.doorbell_offset(address) {
            doorbell::read(now, offset, data);
        } else if let Some((slot, offset)) = self.virtio_at(address) {
            slot.read(offset, data);
        } else if let Some((hpet, offset)) = self.hpet_at(address) {
            hpet.read(now, offset, data);
        } else {
            data.fill(0xff);
            self.unclaimed(Notice::UnclaimedAddress { page: address >> 12, write: false }, out);
        }
    }

    /// A write outside RAM.
    pub(super) fn mmio_write(
        &mut self,
        address: u64,
        data: &[u8],
        memory: &GuestMemory,
        out: &mut dyn Outputs,
    ) -> Power {
        let (now, mut power) = (self.now, None);
        if let Some(offset) = self.doorbell_offset(address) {
            power = doorbell::decode_write(offset, data).and_then(|command| carry_out(command.into(), out));
        } else if let Some((slot, offset)) = self.virtio_at(address) {
            slot.write(offset, data, memory, out);
        } else if let Some((hpet, offset)) = self.hpet_at(address) {
            hpet.write(now, offset, data);
        } else {
            self.unclaimed(Notice::UnclaimedAddress { page: address >> 12, write: true }, out);
        }
        self.update_lines();
        power
    }

    fn unclaimed(&mut self, notice: Notice, out: &mut dyn Outputs) {
        if self.unclaimed.len() < UNCLAIMED_LIMIT && self.unclaimed.insert(notice) {
            out.notice(notice);
        }
    }

    fn update_lines(&mut self) {
        self.pic.set_line(irq::SERIAL, self.serial.interrupt());
        self.pic.set_line(irq::RTC, self.rtc.interrupt());
        for slot in &self.virtio {
            self.pic.set_line(slot.irq(), slot.interrupt());
        }
    }

    fn advance_timers(&mut self) {
        let pic = &mut self.pic;
        self.pit.advance(self.now).drive(|level| pic.set_line(irq::TIMER, level));
        self.rtc.advance(self.now);
        self.deadline = [self.pit.deadline(), self.rtc.deadline()].into_iter().flatten().min();
    }

    /// Whether an input would have an effect if it were applied now. What would not is dropped without
    /// being logged.
    #[must_use]
    pub fn accepts(&self, input: &Input<'_>, memory: &GuestMemory) -> bool {
        match *input {
            Input::Packet { nic, packet } => {
                self.nic(nic).is_some_and(|slot| self.virtio[slot].can_receive(packet, memory))
            }
            Input::DiskDone { disk, tag, status, data } => self.disk(disk).is_some_and(|slot| {
                self.virtio[slot].blk().is_some_and(|blk| blk.check_completion(tag, status, data).is_ok())
            }),
            _ => true,
        }
    }

    fn nic(&self, nic: u8) -> Option<usize> {
        self.virtio.iter().position(|slot| slot.net().is_some_and(|net| net.nic() == nic))
    }

    fn disk(&self, disk: u8) -> Option<usize> {
        self.virtio.iter().position(|slot| slot.blk().is_some_and(|blk| blk.disk() == disk))
    }

    fn console(&self) -> Option<usize> {
        self.virtio.iter().position(|slot| matches!(slot.device(), VirtioDevice::Console(_)))
    }

    /// Applies an input.
    ///
    /// # Errors
    /// When the input is not for this machine, or not for its present state.
    pub fn apply(
        &mut self,
        input: &Input<'_>,
        memory: &GuestMemory,
        out: &mut dyn Outputs,
    ) -> Result<(), InputError> {
        match *input {
            Input::Time(then) => {
                if then < self.now {
                    return Err(InputError::TimeReversed { now: self.now.as_nanos(), then: then.as_nanos() });
                }
                self.now = then;
                // Until then no line of theirs rises, and they can be asked in any number of steps.
                if self.deadline.is_none_or(|deadline| deadline > then) {
                    return Ok(());
                }
                self.advance_timers();
            }
            Input::Packet { nic, packet } => {
                let slot =
                    self.nic(nic).ok_or(InputError::NoDevice { kind: "network device", number: nic })?;
                // Without a buffer the frame is lost, on both sides.
                let outcome = self.virtio[slot].receive(packet, memory);
                self.frame_came |= outcome == RxOutcome::Delivered;
            }
            Input::DiskDone { disk, tag, status, data } => {
                let slot = self.disk(disk).ok_or(InputError::NoDevice { kind: "disk", number: disk })?;
                self.virtio[slot].complete(tag, status, data, memory, out)?;
            }
            Input::Serial(bytes) => {
                // What the full FIFO does not take is lost, as on a real line without flow control.
                let _ = self.serial.enqueue(bytes);
            }
            Input::Console(bytes) => {
                let slot = self.console().ok_or(InputError::NoDevice { kind: "console", number: 0 })?;
                let _ = self.virtio[slot].type_in(bytes, memory);
            }
            // The vCPU's business.
            Input::ShadowDropped => {}
        }
        self.update_lines();
        Ok(())
    }

    /// Disk requests in flight, oldest first per disk: at go-live they are issued again.
    pub fn disk_requests(&self) -> impl Iterator<Item = DiskRequest<'_>> {
        self.virtio.iter().filter_map(VirtioMmio::blk).flat_map(|blk| blk.in_flight())
    }

    /// What the driver of each network device can do with packets: at go-live the host hears it.
    pub fn offloads(&self) -> impl Iterator<Item = (u8, Offloads)> {
        self.virtio.iter().filter_map(VirtioMmio::net).map(|net| (net.nic(), net.state().to_guest))
    }

    /// A sum of each device's state, by name.
    #[must_use]
    pub fn sums(&self) -> Vec<(String, u64)> {
        fn sum(state: &impl Hash) -> u64 {
            let mut hasher = Xxh3::new();
            state.hash(&mut hasher);
            hasher.finish()
        }
        let mut sums = vec![
            ("virtual time".to_owned(), self.now.as_nanos()),
            ("doorbell".to_owned(), u64::from(self.frame_came)),
            ("8259".to_owned(), sum(self.pic.state())),
            ("8254".to_owned(), sum(self.pit.state())),
            ("RTC".to_owned(), sum(self.rtc.state())),
            ("serial".to_owned(), sum(self.serial.state())),
            ("i8042".to_owned(), sum(self.i8042.state())),
            ("reset".to_owned(), sum(self.reset.state())),
            ("PM1".to_owned(), sum(self.pm1.state())),
        ];
        sums.extend(self.hpet.iter().map(|hpet| ("HPET".to_owned(), sum(hpet.state()))));
        for (i, slot) in self.virtio.iter().enumerate() {
            let mut hasher = Xxh3::new();
            slot.hash_state(&mut hasher);
            sums.push((format!("virtio slot {i}"), hasher.finish()));
        }
        sums
    }
}

#[cfg(test)]
mod tests;
