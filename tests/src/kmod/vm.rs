//! A VM of one vCPU and 2 MiB, in long mode from its first instruction.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_TPR_ACCESS, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_dtable,
    kvm_interrupt, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use tandem_kmod_brain::abi::Pause;
use tandem_vmm::machine::cpu::capture::{Capture, CaptureMode, probe};

use super::guest;

const SIZE: usize = 2 << 20;
/// Descriptor tables and page tables.
const GDT: u64 = 0x4000;
const IDT: u64 = 0x4400;
const TSS: u64 = 0x4c00;
const PML4: u64 = 0x5000;
const PDPT: u64 = 0x6000;
const PD: u64 = 0x7000;
const PT: u64 = 0x9000;
/// Stacks grow down from here.
const KERNEL_STACK: u64 = 0xb000;
const USER_STACK: u64 = 0xc000;
/// The last bytes of this page are an edge that programs can jump to.
pub const EDGE: u64 = 0x11_000;
/// Where programs write.
pub const RESULTS: u64 = 0x20_000;
/// The vector of the interrupt that [`Tiny::run`] injects.
pub const VECTOR: u8 = 0x40;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The program wrote this to [`guest::DONE`].
    Done(u8),
    /// The module paused it.
    Paused(Pause),
    /// The guest can take the interrupt that was asked for; RIP.
    Window(u64),
    /// A signal.
    Interrupted,
}

/// The ring in which a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// 0.
    Kernel,
    /// 3.
    User,
}

/// What the module can capture on this host.
///
/// # Errors
/// When it is not there.
pub fn all_traps() -> Result<u32> {
    Ok(probe()?.traps)
}

/// A tiny VM.
#[derive(Debug)]
pub struct Tiny {
    // Dropped in this order.
    /// The module's side, if the vCPU is registered.
    pub capture: Option<Capture>,
    /// The vCPU.
    pub vcpu: VcpuFd,
    _vm: VmFd,
    ram: Ram,
}

/// Guest memory: shared with KVM, so only ever copied from and to.
#[derive(Debug)]
struct Ram(*mut u8);

// SAFETY: the mapping is owned.
unsafe impl Send for Ram {}

impl Ram {
    fn new() -> Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        ensure!(start != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self(start.cast()))
    }

    fn at(&self, address: u64, len: usize) -> Result<*mut u8> {
        let start = usize::try_from(address)?;
        ensure!(start.checked_add(len).is_some_and(|end| end <= SIZE), "{address:#x} lies outside the guest");
        Ok(self.0.wrapping_add(start))
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the VM that used it was dropped before.
        unsafe { libc::munmap(self.0.cast(), SIZE) };
    }
}

fn descriptor(kind: u8, dpl: u8, long: bool) -> u64 {
    let access = 0x90 | u64::from(dpl) << 5 | u64::from(kind);
    0x000f_0000_0000_ffff | access << 40 | if long { 0xa0 } else { 0xc0 } << 48
}

fn segment(selector: u16, kind: u8, dpl: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

impl Tiny {
    /// A VM that nobody has registered.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn new(system: &Kvm) -> Result<Self> {
        Self::with_cpuid(system, |_| {})
    }

    /// The same, with another CPUID than KVM supports.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn with_cpuid(system: &Kvm, change: impl Fn(&mut kvm_cpuid_entry2)) -> Result<Self> {
        let vm = system.create_vm().context("KVM_CREATE_VM")?;
        vm.set_tss_address(0xfffb_d000).context("KVM_SET_TSS_ADDR")?;
        let ram = Ram::new()?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: SIZE as u64,
            userspace_addr: ram.0.addr() as u64,
            flags: 0,
        };
        // SAFETY: the region is the mapping of `ram`, which is dropped after the VM.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let mut cpuid = system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                1 => entry.ecx &= !(1 << 5),
                0x8000_0001 => entry.ecx &= !(1 << 2),
                _ => {}
            }
            change(entry);
        }
        vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        let tiny = Self { capture: None, vcpu, _vm: vm, ram };
        tiny.tables()?;
        tiny.write(guest::CODE, guest::code())?;
        Ok(tiny)
    }

    fn tables(&self) -> Result<()> {
        let gdt = [
            0,
            descriptor(0xb, 0, true),
            descriptor(3, 0, false),
            descriptor(3, 3, false),
            descriptor(0xb, 3, true),
        ];
        for (number, entry) in gdt.iter().enumerate() {
            self.write(GDT + number as u64 * 8, &entry.to_le_bytes())?;
        }
        let gates = [
            (1, guest::fault()),
            (6, guest::fault()),
            (13, guest::fault_with_code()),
            (14, guest::fault_with_code()),
            (u64::from(VECTOR), guest::interrupt()),
        ];
        for (vector, handler) in gates {
            let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            self.write(IDT + vector * 16, &low.to_le_bytes())?;
            self.write(IDT + vector * 16 + 8, &(handler >> 32).to_le_bytes())?;
        }
        self.write(TSS + 4, &KERNEL_STACK.to_le_bytes())?;
        // Present, writable, user.
        self.write(PML4, &(PDPT | 7).to_le_bytes())?;
        self.write(PDPT, &(PD | 7).to_le_bytes())?;
        self.write(PD, &(PT | 7).to_le_bytes())?;
        (0..512_u64).try_for_each(|page| self.write(PT + page * 8, &(page << 12 | 7).to_le_bytes()))
    }

    /// Takes the page of an address out of the guest's page table.
    ///
    /// # Errors
    /// When the address lies outside memory.
    pub fn unmap(&self, address: u64) -> Result<()> {
        self.write(PT + (address >> 12) * 8, &[0; 8])
    }

    /// Writes guest memory.
    ///
    /// # Errors
    /// When it lies outside.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let place = self.ram.at(address, bytes.len())?;
        // SAFETY: within the mapping; the vCPU does not run.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        Ok(())
    }

    /// Reads guest memory.
    ///
    /// # Errors
    /// When it lies outside.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let place = self.ram.at(address, bytes.len())?;
        // SAFETY: within the mapping; the vCPU does not run.
        unsafe { std::ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Reads a word of guest memory.
    ///
    /// # Errors
    /// When it lies outside.
    pub fn word(&self, address: u64) -> Result<u64> {
        let place = self.ram.at(address, 8)?;
        // SAFETY: within the mapping; the vCPU does not run.
        Ok(unsafe { place.cast::<u64>().read_unaligned() })
    }

    /// Reads the first `count` results.
    ///
    /// # Errors
    /// When there is no room for so many.
    pub fn results(&self, count: usize) -> Result<Vec<u64>> {
        (0..count as u64).map(|n| self.word(RESULTS + 8 * n)).collect()
    }

    /// Registers the vCPU with the module.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn register(&mut self, traps: u32, entries: u32, mode: CaptureMode) -> Result<()> {
        let mut capture = Capture::with_rings(self.vcpu.as_raw_fd(), traps, entries)?;
        capture.set_mode(mode)?;
        self.capture = Some(capture);
        Ok(())
    }

    /// The module's side.
    ///
    /// # Errors
    /// When the vCPU is not registered.
    pub fn capture(&mut self) -> Result<&mut Capture> {
        self.capture.as_mut().context("the vCPU is not registered")
    }

    /// Puts the vCPU at the beginning of a program.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start(&self, program: u64, ring: Ring, count: u64, flags: u64) -> Result<()> {
        self.start_with(program, ring, &kvm_regs { rsi: count, rflags: flags, ..kvm_regs::default() }, 0)
    }

    /// The same, with further registers and bits of CR4.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn start_with(&self, program: u64, ring: Ring, regs: &kvm_regs, cr4: u64) -> Result<()> {
        let mut sregs = self.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        let dpl = if ring == Ring::User { 3 } else { 0 };
        let (code, data) = if ring == Ring::User { (0x23, 0x1b) } else { (0x8, 0x10) };
        sregs.cs = segment(code, 0xb, dpl, true);
        let data = segment(data, 3, dpl, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: 0x28,
            type_: 0xb,
            present: 1,
            ..kvm_segment::default()
        };
        sregs.gdt = kvm_dtable { base: GDT, limit: 0x2f, ..kvm_dtable::default() };
        sregs.idt = kvm_dtable { base: IDT, limit: 0x7ff, ..kvm_dtable::default() };
        sregs.cr0 = 0x8000_0011;
        sregs.cr3 = PML4;
        sregs.cr4 = 0x20 | cr4;
        sregs.efer = 0x500;
        self.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let stack = if ring == Ring::User { USER_STACK } else { KERNEL_STACK };
        // IOPL 3: ring 3 may end its program by OUT.
        let regs = kvm_regs { rip: program, rdi: RESULTS, rsp: stack, rflags: regs.rflags | 0x3002, ..*regs };
        self.vcpu.set_regs(&regs).context("KVM_SET_REGS")
    }

    /// Runs until something of note happens. A port read is answered with zeros.
    ///
    /// # Errors
    /// When KVM cannot run the guest.
    pub fn run(&mut self) -> Result<End> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::DONE, data)) => return Ok(End::Done(data[0])),
                Ok(VcpuExit::IoIn(_, data)) => data.fill(0),
                Ok(VcpuExit::IrqWindowOpen) => {
                    return Ok(End::Window(self.vcpu.get_regs().context("KVM_GET_REGS")?.rip));
                }
                Ok(VcpuExit::Intr) => return Ok(End::Interrupted),
                Ok(_) => {}
                Err(error) if error.errno() == libc::EINTR => return Ok(End::Interrupted),
                Err(error) => return Err(error).context("KVM_RUN"),
            }
            match self.vcpu.get_kvm_run().exit_reason {
                kvm_bindings::KVM_EXIT_IO | KVM_EXIT_IRQ_WINDOW_OPEN => {}
                KVM_EXIT_TPR_ACCESS => {
                    let pause = self.capture()?.pause().context("a pause that is none")?;
                    ensure!(pause != Pause::None, "KVM_EXIT_TPR_ACCESS without a pause");
                    return Ok(End::Paused(pause));
                }
                reason => {
                    let regs = self.vcpu.get_regs()?;
                    bail!("KVM left the guest for reason {reason} at RIP {:#x}", regs.rip);
                }
            }
        }
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it does not end by itself, or not well.
    pub fn finish(&mut self) -> Result<()> {
        loop {
            match self.run()? {
                End::Done(0) => return Ok(()),
                End::Interrupted => {}
                end => bail!("the program ended otherwise: {end:x?}"),
            }
        }
    }

    /// Asks for an exit when the guest can take an interrupt.
    pub fn want_window(&mut self, wanted: bool) {
        self.vcpu.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    /// Injects the interrupt of [`VECTOR`].
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn inject(&mut self) -> Result<()> {
        const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
        self.want_window(false);
        let interrupt = kvm_interrupt { irq: VECTOR.into() };
        // SAFETY: the number's structure, for the length of the call.
        let result = unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) };
        ensure!(result >= 0, "KVM_INTERRUPT: {}", std::io::Error::last_os_error());
        Ok(())
    }
}
