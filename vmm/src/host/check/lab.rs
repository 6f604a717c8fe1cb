//! A virtual machine just large enough to run one snippet: 2 MiB of memory, flat 64-bit segments,
//! identity paging, interrupt and exception entries.

use std::fmt;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, Msrs, kvm_dtable, kvm_interrupt, kvm_msr_entry, kvm_regs,
    kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::snippets::{BLOB, EXCEPTION, MMIO, Snippet, blob};

const MEMORY: usize = 0x20_0000;
const PAGE_TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
/// CR3 of a 64-bit snippet.
pub(super) const CR3: u32 = PAGE_TABLES[0] as u32;
/// CR4 of a 64-bit snippet: PAE; OSFXSR and OSXMMEXCPT, for SSE.
pub(super) const CR4: u32 = 0x620;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
const EXCEPTION_STUBS: u64 = 0x7000;
const RING0_STACK: u64 = 0x9000;
const RING3_STACK: u64 = 0xb000;

/// Selectors, in the order that `syscall` and `sysret` want.
const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const DATA3: u16 = 0x23;
const CODE3: u16 = 0x2b;
const TASK: u16 = 0x30;

/// Vector of the interrupt that [`Lab::interrupt`] injects.
const VECTOR: u32 = 0x20;

// From linux/kvm.h.
ioctl_iow_nr!(KVM_INTERRUPT, kvm_bindings::KVMIO, 0x86, kvm_interrupt);

/// Where a snippet runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// 64-bit, ring 3, interrupts on.
    Ring3,
    /// 64-bit, ring 0, interrupts off.
    Ring0,
    /// 32-bit, ring 0, no paging.
    Protected,
}

/// What the guest did that reached the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// `out` of a value to a port.
    Out(u16, u32),
    /// A store of four bytes at this offset of the MMIO page.
    Store(u64, u32),
    /// A load from it; answered with [`ANSWER`].
    Load(u64),
    /// `rdmsr` of a filtered MSR; answered with [`ANSWER`].
    ReadMsr(u32),
    /// A debug exit with the guest's RIP.
    Debug(u64),
}

/// What loads and MSR reads get.
pub(super) const ANSWER: u32 = 0x0bad_cafe;

/// Why a snippet got no further, in words for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stuck(pub(super) String);

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<kvm_ioctls::Error> for Stuck {
    fn from(error: kvm_ioctls::Error) -> Self {
        Self(format!("KVM refuses: {error}"))
    }
}

/// The machine.
pub(super) struct Lab {
    pub(super) vcpu: VcpuFd,
    pub(super) vm: VmFd,
    _memory: GuestMemoryMmap<()>,
}

impl Lab {
    /// A machine about to run `snippet`.
    pub(super) fn new(snippet: Snippet, mode: Mode) -> Result<Self, Stuck> {
        let kvm = Kvm::new().map_err(|error| Stuck(format!("cannot open /dev/kvm: {error}")))?;
        let vm = kvm.create_vm()?;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|error| Stuck(format!("cannot map 2 MiB: {error}")))?;
        let host = memory.get_host_address(GuestAddress(0)).map_err(|error| Stuck(error.to_string()))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: host.addr() as u64,
        };
        // SAFETY: the mapping lives in the same struct as the VM and is dropped after it.
        unsafe { vm.set_user_memory_region(region)? };
        furnish(&memory).map_err(|error| Stuck(error.to_string()))?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let mut sregs = vcpu.get_sregs()?;
        prepare(&mut sregs, mode);
        vcpu.set_sregs(&sregs)?;
        let (stack, flags) = if mode == Mode::Ring3 { (RING3_STACK, 0x202) } else { (RING0_STACK, 0x2) };
        let regs = kvm_regs { rip: snippet.address(), rsp: stack, rflags: flags, ..kvm_regs::default() };
        vcpu.set_regs(&regs)?;
        Ok(Self { vcpu, vm, _memory: memory })
    }

    /// Makes `syscall` enter the snippet [`Snippet::SyscallEntry`].
    pub(super) fn enable_syscall(&self) -> Result<(), Stuck> {
        let entry = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let star = u64::from(CODE0) << 32 | (u64::from(CODE3) - 16) << 48;
        let wanted = [
            entry(0xc000_0081, star),
            entry(0xc000_0082, Snippet::SyscallEntry.address()),
            entry(0xc000_0084, 0x200),
        ];
        let msrs = Msrs::from_entries(&wanted).map_err(|error| Stuck(format!("{error:?}")))?;
        match self.vcpu.set_msrs(&msrs)? {
            set if set == wanted.len() => Ok(()),
            set => Err(Stuck(format!("KVM refuses MSR {:#x}", wanted[set].index))),
        }
    }

    /// Injects an interrupt, which the guest takes at the next entry.
    pub(super) fn interrupt(&self) -> Result<(), Stuck> {
        let interrupt = kvm_interrupt { irq: VECTOR };
        // SAFETY: KVM_INTERRUPT reads one kvm_interrupt.
        if unsafe { ioctl_with_ref(&self.vcpu, KVM_INTERRUPT(), &interrupt) } < 0 {
            return Err(kvm_ioctls::Error::last().into());
        }
        Ok(())
    }

    /// Runs the guest until it does something that reaches the host.
    pub(super) fn next(&mut self) -> Result<Seen, Stuck> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(EXCEPTION, data)) => {
                    break Err(Stuck(format!("exception {} in the guest", exception(word(data)))));
                }
                Ok(VcpuExit::IoOut(port, data)) => break Ok(Seen::Out(port, word(data))),
                Ok(VcpuExit::MmioWrite(address, data)) if in_page(address) => {
                    break Ok(Seen::Store(address - MMIO, word(data)));
                }
                Ok(VcpuExit::MmioRead(address, data)) if in_page(address) => {
                    let len = data.len().min(4);
                    data[..len].copy_from_slice(&ANSWER.to_le_bytes()[..len]);
                    break Ok(Seen::Load(address - MMIO));
                }
                Ok(VcpuExit::X86Rdmsr(exit)) => {
                    *exit.data = u64::from(ANSWER);
                    *exit.error = 0;
                    break Ok(Seen::ReadMsr(exit.index));
                }
                Ok(VcpuExit::Debug(debug)) => break Ok(Seen::Debug(debug.pc)),
                Ok(VcpuExit::Shutdown) => break Err(Stuck("triple fault".to_owned())),
                Ok(VcpuExit::InternalError) => break Err(Stuck("KVM_EXIT_INTERNAL_ERROR".to_owned())),
                Ok(other) => break Err(Stuck(format!("unexpected exit {other:?}"))),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => break Err(Stuck(format!("KVM_RUN: {error}"))),
            }
        }
    }

    /// Runs the guest and demands that it does just this.
    pub(super) fn expect(&mut self, wanted: Seen) -> Result<(), Stuck> {
        match self.next()? {
            seen if seen == wanted => Ok(()),
            seen => Err(Stuck(format!("expected {wanted:x?} of the guest, got {seen:x?}"))),
        }
    }
}

fn in_page(address: u64) -> bool {
    (MMIO..MMIO + 0x1000).contains(&address)
}

/// Up to four bytes, least significant first.
fn word(data: &[u8]) -> u32 {
    data.iter().take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

fn exception(vector: u32) -> String {
    match vector {
        0 => "#DE".to_owned(),
        1 => "#DB".to_owned(),
        6 => "#UD".to_owned(),
        7 => "#NM".to_owned(),
        8 => "#DF".to_owned(),
        11 => "#NP".to_owned(),
        12 => "#SS".to_owned(),
        13 => "#GP".to_owned(),
        14 => "#PF".to_owned(),
        19 => "#XM".to_owned(),
        other => other.to_string(),
    }
}

/// Fills guest memory: page tables, descriptors, handlers, code.
fn furnish(memory: &GuestMemoryMmap<()>) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE_USER: u64 = 0b111;
    const LARGE_ACCESSED_DIRTY: u64 = 0b1110_0000;
    let put = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));
    let [pml4, pdpt, pd] = PAGE_TABLES;
    put(pml4, pdpt | PRESENT_WRITABLE_USER)?;
    put(pdpt, pd | PRESENT_WRITABLE_USER)?;
    put(pd, PRESENT_WRITABLE_USER | LARGE_ACCESSED_DIRTY)?;
    put(pd + 8, MMIO | PRESENT_WRITABLE_USER | LARGE_ACCESSED_DIRTY)?;
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
        0,
    ];
    for (address, descriptor) in (GDT..).step_by(8).zip(gdt) {
        put(address, descriptor)?;
    }
    // RSP0; the offset of four is the architecture's.
    put(TSS + 4, RING0_STACK)?;
    for vector in 0..32u8 {
        let stub = EXCEPTION_STUBS + 16 * u64::from(vector);
        // mov al, vector; jmp Exception
        let mut code = [0xb0, vector, 0xe9, 0, 0, 0, 0];
        let distance = Snippet::Exception.address() as i64 - (stub as i64 + code.len() as i64);
        code[3..].copy_from_slice(&(distance as i32).to_le_bytes());
        memory.write_slice(&code, GuestAddress(stub))?;
        gate(memory, vector, stub)?;
    }
    gate(memory, VECTOR as u8, Snippet::Interrupt.address())?;
    gate(memory, 0x80, Snippet::IntEntry.address())?;
    memory.write_slice(blob(), GuestAddress(BLOB))
}

/// An interrupt gate that ring 3 may call. The handlers lie below 64 KiB times two: the high parts stay zero.
fn gate(memory: &GuestMemoryMmap<()>, vector: u8, handler: u64) -> Result<(), vm_memory::GuestMemoryError> {
    let low = handler & 0xffff | u64::from(CODE0) << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48;
    memory.write_obj(low, GuestAddress(IDT + 16 * u64::from(vector)))
}

/// Puts the processor into `mode`.
fn prepare(sregs: &mut kvm_sregs, mode: Mode) {
    const PROTECTED: u64 = 0x0001_0033;
    const PAGING: u64 = 0x8000_0000;
    const PAE: u64 = 0x20;
    let user = mode == Mode::Ring3;
    let long = mode != Mode::Protected;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: if user { CODE3 } else { CODE0 },
        type_: 0xb,
        present: 1,
        dpl: if user { 3 } else { 0 },
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: if user { DATA3 } else { DATA0 }, type_: 0x3, db: 1, l: 0, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: TASK,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.gdt = kvm_dtable { base: GDT, limit: 0x3f, ..kvm_dtable::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 0xfff, ..kvm_dtable::default() };
    sregs.cr0 = PROTECTED;
    sregs.cr4 = u64::from(CR4) & !PAE;
    sregs.efer = 0;
    if long {
        sregs.cr0 |= PAGING;
        sregs.cr3 = u64::from(CR3);
        sregs.cr4 |= PAE;
        // SCE, LME, LMA.
        sregs.efer = 0x501;
    }
}
