//! The machine as a whole: memory, vCPU and board.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_MEM_LOG_DIRTY_PAGES, kvm_cpuid_entry2, kvm_enable_cap, kvm_regs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use thiserror::Error;

use super::board::{Board, InputError};
use super::boot::{self, BootError, BootImage, SEED_LEN};
use super::cpu::capture::{self, Capture, CaptureError, CaptureMode, GUEST_KHZ};
use super::cpu::clock_page::ClockPage;
use super::cpu::cpuid;
use super::cpu::exit::Exit;
use super::cpu::image::ImageError;
use super::cpu::msr;
use super::cpu::vcpu::{Entered, Vcpu, VcpuError};
use super::devices::hpet;
use super::dirty::DirtyLog;
use super::input::Input;
use super::memory::{GuestRam, MemoryError};
use super::output::{DiskRequest, Notice, Outputs, PowerEvent};
use super::time::VirtualTime;
use super::virtio::blk::{Blk, ID_LEN};
use super::virtio::console::Console;
use super::virtio::device::VirtioDevice;
use super::virtio::mmio::NoSuchSlot;
use super::virtio::net::Net;
use super::virtio::net::offload::Offloads;
use super::virtio::rng::Rng;

/// When the guest reads a clock, and how.
mod clock;

/// Exits that the guest is spared.
mod sparing;

/// The machine's state as a whole.
mod state;

/// One network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// One disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// What a machine is made of. Two machines of equal configuration start out equal.
#[derive(Clone, Debug)]
pub struct MachineConfig<'a> {
    /// RAM in bytes, a multiple of 4 KiB.
    pub ram: u64,
    /// Kernel image, bzImage or ELF.
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Command line; the machine appends what names its devices.
    pub command_line: &'a str,
    /// Network devices.
    pub nics: &'a [NicConfig],
    /// Disks.
    pub disks: &'a [DiskConfig],
    /// Seed of the guest's and of virtio-rng's randomness; drawn once, and logged.
    pub seed: [u8; SEED_LEN],
    /// Unix seconds at power-on; read once, and logged.
    pub wall_clock: u64,
    /// Whether KVM logs dirty pages, which forced stops need.
    pub dirty_log: bool,
    /// Whether KVM keeps shadow page tables, which do not follow what is written into guest memory from outside.
    pub shadow_paging: bool,
    /// Whether the machine has the embedded guest's doorbell page, at which the guest idles; its network
    /// queues are then served without notifications.
    pub doorbell: bool,
    /// Whether the guest has a TSC, which the kernel module serves.
    pub trapped_tsc: bool,
}

/// What a machine came upon.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM refused a call.
    #[error("KVM {0} failed")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// The vCPU failed.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The vCPU's state could not be read or set.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The guest could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Too many devices.
    #[error(transparent)]
    Slots(#[from] NoSuchSlot),
    /// The kernel module failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// An input does not fit.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The vCPU should have stood between two instructions, but met an exit of the same instruction.
    #[error("a forced stop fell into the middle of an instruction ({0:?})")]
    Unfinished(Exit),
}

/// How the emulation of an exit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// The guest can be entered again.
    Done,
    /// The guest waits for an interrupt.
    Idle,
    /// The guest switched itself off.
    Off(PowerEvent),
}

/// An MMIO read that waits for an interrupt: how many bytes it reads, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IdleRead {
    address: u64,
    size: u8,
}

/// A virtual machine of one vCPU.
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: the module lets the vCPU go, the vCPU before its VM, what the guest sees of this process last.
    pub(super) capture: Option<Capture>,
    /// Captured instructions that were told of by [`Machine::count_captured`].
    pub(super) counted: u64,
    /// MSR TSC_AUX.
    pub(super) tsc_aux: u64,
    /// The virtual TSC in the image that was loaded last, which the module has not seen.
    pub(super) tsc_before: u64,
    vcpu: Vcpu,
    vm: VmFd,
    board: Board,
    dirty: DirtyLog,
    idle_read: Option<IdleRead>,
    cpuid: Vec<kvm_cpuid_entry2>,
    command_line: String,
    shadow_paging: bool,
    clock_page: ClockPage,
    ram: GuestRam,
}

fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |e| MachineError::Kvm(call, e)
}

impl Machine {
    /// Builds a machine and puts its vCPU at the kernel's entry.
    ///
    /// # Errors
    /// When KVM refuses, or the guest does not fit.
    pub fn new(system: &Kvm, config: &MachineConfig<'_>) -> Result<Self, MachineError> {
        let vm = system.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        // Three pages that Intel CPUs need for real mode, out of the way of RAM and devices.
        vm.set_tss_address(0xfffb_d000).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        msr::filter(&vm).map_err(|(call, error)| MachineError::Kvm(call, error))?;
        keep_pending_exceptions(&vm)?;
        let ram = GuestRam::new(config.ram)?;
        for slot in ram.slots() {
            let region = kvm_userspace_memory_region {
                slot: slot.slot,
                guest_phys_addr: slot.guest_address,
                memory_size: slot.size,
                userspace_addr: slot.host_address,
                flags: if config.dirty_log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            };
            // SAFETY: the region lies in the mapping of `ram`, which is dropped after the VM.
            unsafe { vm.set_user_memory_region(region) }.map_err(kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let cpuid = Self::guest_cpuid(system, config.trapped_tsc)?;
        let vcpu = Vcpu::new(&vm)?;
        let table = cpuid::to_kvm(&cpuid)
            .map_err(|_| MachineError::Kvm("KVM_SET_CPUID2", kvm_ioctls::Error::new(libc::E2BIG)))?;
        vcpu.fd().set_cpuid2(&table).map_err(kvm("KVM_SET_CPUID2"))?;
        // The embedded guest has the doorbell for a clock, and the TSC is better than both where there is one.
        let hpet = !config.doorbell && !config.trapped_tsc;
        let board = Board::new(config.wall_clock, &ram, virtio_devices(config), config.doorbell, hpet)?;
        let capture = if config.trapped_tsc { Some(captured(&vcpu, &cpuid)?) } else { None };
        let mut command_line = [config.command_line.to_owned(), board.command_line()].join(" ");
        if config.trapped_tsc {
            // Calibration would take half a second of port reads, and a watchdog would find nothing.
            command_line = format!("{command_line} tsc_early_khz={GUEST_KHZ} tsc=reliable");
        }
        let command_line = command_line.trim().to_owned();
        let image = BootImage {
            kernel: config.kernel,
            initrd: config.initrd,
            command_line: &command_line,
            seed: config.seed,
            hpet,
        };
        boot::load(ram.memory(), vcpu.fd(), &image)?;
        let dirty = DirtyLog::new(&vm, &ram).map_err(kvm("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))?;
        Ok(Self {
            capture,
            counted: 0,
            tsc_aux: 0,
            tsc_before: 0,
            vcpu,
            vm,
            board,
            dirty,
            idle_read: None,
            cpuid,
            command_line,
            shadow_paging: config.shadow_paging,
            clock_page: ClockPage::new(hpet::ADDRESS),
            ram,
        })
    }

    /// What CPUID shows every guest on this host, with what the module serves or without.
    ///
    /// # Errors
    /// When KVM does not say what it supports, or the module is wanted and not there.
    pub fn guest_cpuid(system: &Kvm, trapped_tsc: bool) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
        let supported = system
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let captured = if trapped_tsc { capture::probe()?.traps } else { 0 };
        Ok(cpuid::filter(supported.as_slice(), captured))
    }

    /// Guest memory.
    #[must_use]
    pub const fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// What CPUID shows the guest.
    #[must_use]
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// The complete command line.
    #[must_use]
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// Address of the `kvm_run` area, whose `immediate_exit` a signal handler may set.
    pub fn run_area(&mut self) -> *mut kvm_bindings::kvm_run {
        self.vcpu.run_area()
    }

    /// Virtual time.
    #[must_use]
    pub const fn now(&self) -> VirtualTime {
        self.board.now()
    }

    /// When a timer fires next, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<VirtualTime> {
        self.board.deadline()
    }

    /// Whether emulating this exit puts out what the guest has queued: packets, disk requests.
    #[must_use]
    pub fn kicks_off(&self, exit: &Exit) -> bool {
        self.board.kicks_off(exit, self.ram.memory())
    }

    /// Whether an input would have an effect now.
    #[must_use]
    pub fn accepts(&self, input: &Input<'_>) -> bool {
        self.board.accepts(input, self.ram.memory())
    }

    /// Applies an input.
    ///
    /// # Errors
    /// When it does not fit this machine.
    pub fn apply(&mut self, input: &Input<'_>, out: &mut dyn Outputs) -> Result<(), MachineError> {
        if *input == Input::ShadowDropped {
            return self.drop_shadow();
        }
        Ok(self.board.apply(input, self.ram.memory(), out)?)
    }

    /// Enters the guest.
    ///
    /// # Errors
    /// When KVM cannot run it.
    pub fn enter(&mut self) -> Result<Entered, MachineError> {
        self.clock_page
            .show(&self.vm, self.board.clock_page().as_ref().map(|shown| &shown[..]))
            .map_err(kvm("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(self.vcpu.enter()?)
    }

    /// General registers as of the last exit.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn regs(&self) -> Result<kvm_regs, MachineError> {
        Ok(self.vcpu.regs()?)
    }

    /// What a port write carries; empty for other exits.
    pub fn port_output(&mut self, exit: &Exit) -> &[u8] {
        match *exit {
            Exit::PortOut { size, count, .. } => self.vcpu.port_data(usize::from(size) * count as usize),
            _ => &[],
        }
    }

    /// Emulates an exit.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn emulate(&mut self, exit: &Exit, out: &mut dyn Outputs) -> Result<Emulated, MachineError> {
        let mut power = None;
        self.board.exited(exit);
        self.board.look(self.ram.memory(), out);
        match *exit {
            Exit::PortIn { port, size, count } => {
                let data = self.vcpu.port_data(usize::from(size) * count as usize);
                for item in data.chunks_mut(usize::from(size.max(1))) {
                    self.board.port_in(port, item, out);
                }
            }
            Exit::PortOut { port, size, count } => {
                let data = self.vcpu.port_data(usize::from(size) * count as usize);
                for item in data.chunks(usize::from(size.max(1))) {
                    power = power.or(self.board.port_out(port, item, out));
                }
            }
            Exit::MmioRead { address, size } if self.board.is_idle_read(address, usize::from(size)) => {
                self.idle_read = Some(IdleRead { address, size });
                return Ok(Emulated::Idle);
            }
            Exit::MmioRead { address, size } => self.answer_read(address, size, out),
            Exit::MmioWrite { address, size, data } => {
                let data = &data.to_le_bytes()[..usize::from(size)];
                power = self.board.mmio_write(address, data, self.ram.memory(), out);
            }
            Exit::Halt if self.vcpu.interrupts_enabled() => return Ok(Emulated::Idle),
            // Nothing can end this: there are no NMIs.
            Exit::Halt => power = Some(PowerEvent::Off),
            // Nothing to do but to try again: the module serves the instruction then.
            Exit::InterruptWindow | Exit::Captured => {}
            Exit::MsrRead { index } if self.capture.is_some() && captured_msr(index) => {
                let value = if index == msr::TSC_AUX { self.tsc_aux } else { self.captured_state().tsc };
                self.vcpu.answer_msr(msr::Answer::Value(value));
            }
            Exit::MsrWrite { index, data } if self.capture.is_some() && captured_msr(index) => {
                if index == msr::TSC_AUX {
                    self.set_tsc_aux(data);
                }
                self.vcpu.answer_msr(msr::Answer::Value(0));
            }
            Exit::MsrRead { index } => self.answer_msr(index, msr::read(index), out),
            Exit::MsrWrite { index, .. } => self.answer_msr(index, msr::write(index), out),
            Exit::Shutdown => power = Some(PowerEvent::Reset),
        }
        Ok(power.map_or(Emulated::Done, Emulated::Off))
    }

    fn answer_read(&mut self, address: u64, size: u8, out: &mut dyn Outputs) {
        let mut data = [0; 8];
        self.board.mmio_read(address, &mut data[..usize::from(size)], out);
        self.vcpu.answer_mmio(data);
    }

    fn answer_msr(&mut self, index: u32, answer: msr::Answer, out: &mut dyn Outputs) {
        if answer == msr::Answer::Fault {
            out.notice(Notice::UnknownMsr { index });
        }
        self.vcpu.answer_msr(answer);
    }

    /// Whether the idle wait can end.
    #[must_use]
    pub fn can_wake(&self) -> bool {
        match self.idle_read {
            Some(_) => self.board.doorbell_returns(),
            None => self.board.interrupt_pending(),
        }
    }

    /// Ends the idle wait.
    pub fn wake(&mut self) {
        self.board.wakes();
        if let Some(IdleRead { address, size }) = self.idle_read.take() {
            self.board.idle_ends();
            self.answer_read(address, size, &mut super::output::Dropped);
        }
    }

    /// Injects a pending interrupt if the guest can take it, or asks for an exit when it can.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn inject_interrupts(&mut self) -> Result<(), MachineError> {
        if self.board.interrupt_pending() && self.vcpu.ready_for_interrupt() {
            let vector = self.board.acknowledge_interrupt();
            self.vcpu.inject(vector)?;
        }
        self.vcpu.request_interrupt_window(self.board.interrupt_pending());
        Ok(())
    }

    /// Disk requests in flight.
    pub fn disk_requests(&self) -> impl Iterator<Item = DiskRequest<'_>> {
        self.board.disk_requests()
    }

    /// What the driver of each network device can do with packets.
    pub fn offloads(&self) -> impl Iterator<Item = (u8, Offloads)> {
        self.board.offloads()
    }
}

/// Lets an exception that is not delivered yet be saved as such, with its fault address or DR6 bits: saved as half
/// delivered, which is the default, it loses the RFLAGS.RF that its frame on the stack has.
fn keep_pending_exceptions(vm: &VmFd) -> Result<(), MachineError> {
    let cap = kvm_enable_cap { cap: KVM_CAP_EXCEPTION_PAYLOAD, args: [1, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).map_err(kvm("KVM_CAP_EXCEPTION_PAYLOAD"))
}

/// Registers the vCPU with the kernel module, to record from now on.
fn captured(vcpu: &Vcpu, cpuid: &[kvm_cpuid_entry2]) -> Result<Capture, MachineError> {
    // What CPUID hides, KVM itself makes fault, as far as the CPU lets it.
    let traps = capture::probe()?.traps & cpuid::shown(cpuid);
    let mut capture = Capture::register(vcpu.fd().as_raw_fd(), traps)?;
    capture.set_clock(0)?;
    capture.set_mode(CaptureMode::Record)?;
    Ok(capture)
}

/// The MSRs that a guest with a captured TSC has besides those of [`msr::PASSED`].
const fn captured_msr(index: u32) -> bool {
    matches!(index, msr::TSC | msr::TSC_AUX)
}

/// Slots in order: network devices, disks, entropy, console.
fn virtio_devices(config: &MachineConfig<'_>) -> Vec<VirtioDevice> {
    let nics = config.nics.iter().zip(0..).map(|(nic, number)| {
        let net = Net::new(number, nic.mac);
        VirtioDevice::Net(if config.doorbell { net.polled() } else { net })
    });
    let disks = config.disks.iter().zip(0..).map(|(disk, number)| {
        let mut id = [0; ID_LEN];
        let name = format!("tandem-disk-{number}");
        id[..name.len()].copy_from_slice(name.as_bytes());
        VirtioDevice::Blk(Blk::new(number, disk.sectors, disk.read_only, id))
    });
    nics.chain(disks)
        .chain([VirtioDevice::Rng(Rng::new(config.seed)), VirtioDevice::Console(Console::new())])
        .collect()
}
