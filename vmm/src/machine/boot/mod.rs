//! Puts a kernel into guest memory and a vCPU at its entry.
//!
//! Two protocols: the Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst) for bzImages and
//! for ELF images without a PVH note, and PVH (xen/docs/misc/pvh) for ELF images with one.

use std::io::Cursor;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use thiserror::Error;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

/// What the guest cannot find out by itself, as firmware tells it.
mod acpi;

/// The zero page of the 64-bit boot protocol.
mod linux;

/// The start info of PVH.
mod pvh;

/// Segments and page tables of the entry state.
mod segments;

/// Where the boot parameters lie, all below 640 KiB.
mod layout {
    /// Global descriptor table.
    pub(super) const GDT: u64 = 0x500;
    /// `struct setup_data` with the RNG seed.
    pub(super) const SETUP_DATA: u64 = 0x6000;
    /// `struct boot_params` or `struct hvm_start_info`.
    pub(super) const ZERO_PAGE: u64 = 0x7000;
    /// PVH memory map and module list.
    pub(super) const PVH_TABLES: u64 = 0x8000;
    /// Top-level page table; the next five pages follow it.
    pub(super) const PAGE_TABLES: u64 = 0x9000;
    /// Command line, at most [`COMMAND_LINE_MAX`] bytes with its NUL.
    pub(super) const COMMAND_LINE: u64 = 0x2_0000;
    /// Longest command line, with its NUL: what Linux's COMMAND_LINE_SIZE allows.
    pub(super) const COMMAND_LINE_MAX: usize = 2048;
    /// End of usable low memory: the EBDA begins.
    pub(super) const LOW_MEMORY_END: u64 = 0x9_fc00;
    /// Where kernels are loaded: 1 MiB.
    pub(super) const HIGH_MEMORY: u64 = 0x10_0000;
}

/// Bytes of the boot seed for the guest's random number generator.
pub const SEED_LEN: usize = 32;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootImage<'a> {
    /// A bzImage or an ELF file.
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Complete command line.
    pub command_line: &'a str,
    /// Seed for the guest's random number generator (SETUP_RNG_SEED).
    pub seed: [u8; SEED_LEN],
    /// Whether the machine has an HPET.
    pub hpet: bool,
}

/// Why a guest could not be set up.
#[derive(Debug, Error)]
pub enum BootError {
    /// Neither bzImage nor ELF, or a damaged one.
    #[error("the kernel is neither a bzImage nor an ELF file that can be loaded")]
    Kernel(#[source] loader::Error),
    /// Too long a command line.
    #[error("the command line has {0} bytes; at most {max} fit", max = layout::COMMAND_LINE_MAX - 1)]
    CommandLine(usize),
    /// Command lines end at a NUL byte.
    #[error("the command line contains a NUL byte")]
    CommandLineNul,
    /// Not enough memory for the initrd.
    #[error(
        "the initrd ({initrd} bytes) does not fit above the kernel's end at {kernel_end:#x}; give the guest more memory"
    )]
    Initrd {
        /// Its size.
        initrd: usize,
        /// Where the kernel ends.
        kernel_end: u64,
    },
    /// A boot structure lies outside RAM.
    #[error("the boot parameters do not fit into guest memory")]
    Memory(#[from] GuestMemoryError),
    /// KVM refused the entry state.
    #[error("{0} failed")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
}

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Linux64 { entry: u64 },
    Pvh { entry: u64 },
}

/// Loads `image` into `memory` and sets `vcpu` to its entry.
///
/// # Errors
/// When the image is damaged or does not fit.
pub fn load(memory: &GuestMemoryMmap, vcpu: &VcpuFd, image: &BootImage<'_>) -> Result<(), BootError> {
    write_command_line(memory, image.command_line)?;
    let (protocol, header, kernel_end) = load_kernel(memory, image.kernel)?;
    let rsdp = acpi::write_tables(memory, image.hpet)?;
    let initrd = image.initrd.map(|bytes| place_initrd(memory, bytes, kernel_end)).transpose()?;
    match protocol {
        Protocol::Linux64 { entry } => {
            linux::write_zero_page(memory, header, initrd, image)?;
            enter_long_mode(memory, vcpu, entry)
        }
        Protocol::Pvh { entry } => {
            pvh::write_start_info(memory, initrd, rsdp)?;
            enter_protected_mode(memory, vcpu, entry)
        }
    }
}

fn write_command_line(memory: &GuestMemoryMmap, line: &str) -> Result<(), BootError> {
    if line.len() >= layout::COMMAND_LINE_MAX {
        return Err(BootError::CommandLine(line.len()));
    }
    if line.bytes().any(|b| b == 0) {
        return Err(BootError::CommandLineNul);
    }
    memory.write_slice(line.as_bytes(), GuestAddress(layout::COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(layout::COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

type Loaded = (Protocol, Option<loader::bootparam::setup_header>, u64);

fn load_kernel(memory: &GuestMemoryMmap, kernel: &[u8]) -> Result<Loaded, BootError> {
    let highest = Some(GuestAddress(layout::HIGH_MEMORY));
    if kernel.starts_with(b"\x7fELF") {
        let loaded = Elf::load(memory, None, &mut Cursor::new(kernel), highest).map_err(BootError::Kernel)?;
        let protocol = match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(entry) => Protocol::Pvh { entry: entry.raw_value() },
            _ => Protocol::Linux64 { entry: loaded.kernel_load.raw_value() },
        };
        Ok((protocol, None, loaded.kernel_end))
    } else {
        let loaded =
            BzImage::load(memory, highest, &mut Cursor::new(kernel), highest).map_err(BootError::Kernel)?;
        // boot.rst, "64-bit boot protocol": the entry is 0x200 behind the load address.
        let entry = loaded.kernel_load.raw_value() + 0x200;
        // A bzImage unpacks itself: it needs `init_size` bytes, not just the file's.
        let end = loaded.setup_header.map_or(loaded.kernel_end, |h| {
            loaded
                .kernel_end
                .max(u64::from(h.pref_address as u32).max(layout::HIGH_MEMORY) + u64::from(h.init_size))
        });
        Ok((Protocol::Linux64 { entry }, loaded.setup_header, end))
    }
}

/// Puts the initrd at the end of low RAM, page-aligned, above the kernel.
fn place_initrd(memory: &GuestMemoryMmap, bytes: &[u8], kernel_end: u64) -> Result<(u64, u64), BootError> {
    const PAGE: u64 = 4096;
    let too_big = BootError::Initrd { initrd: bytes.len(), kernel_end };
    // The header's initrd_addr_max of 64-bit kernels is 2 GiB - 1.
    let top = low_ram_end(memory).min(0x8000_0000);
    let Some(start) = top.checked_sub(bytes.len() as u64).map(|a| a / PAGE * PAGE) else {
        return Err(too_big);
    };
    if start < kernel_end.next_multiple_of(PAGE) {
        return Err(too_big);
    }
    memory.write_slice(bytes, GuestAddress(start))?;
    Ok((start, bytes.len() as u64))
}

/// One past the last byte of the RAM that begins at address 0.
fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len)
}

/// The memory map: what both protocols tell the guest as usable RAM.
fn usable_ram(memory: &GuestMemoryMmap) -> Vec<(u64, u64)> {
    let mut map = vec![(0, layout::LOW_MEMORY_END)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let from = start.max(layout::HIGH_MEMORY);
        map.push((from, start + region.len() - from));
    }
    map
}

fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> BootError {
    move |e| BootError::Kvm(call, e)
}

fn enter_long_mode(memory: &GuestMemoryMmap, vcpu: &VcpuFd, entry: u64) -> Result<(), BootError> {
    let mut sregs: kvm_sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    segments::long_mode(memory, &mut sregs)?;
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rflags: 2,
        rip: entry,
        rsi: layout::ZERO_PAGE,
        // Linux has a stack of its own; the slot below the zero page serves any other entry.
        rsp: layout::ZERO_PAGE - 0x10,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))
}

fn enter_protected_mode(memory: &GuestMemoryMmap, vcpu: &VcpuFd, entry: u64) -> Result<(), BootError> {
    let mut sregs: kvm_sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    segments::protected_mode(memory, &mut sregs)?;
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rflags: 2, rip: entry, rbx: layout::ZERO_PAGE, ..Default::default() };
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))
}
