//! Segments and page tables of the entry state.

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Descriptor with base 0 and limit 4 GiB (SDM volume 3A, 3.4.5): type, and the L and D/B bits.
const fn flat(kind: u8, long: bool) -> u64 {
    // Limit 0xfffff in pages, present, non-system.
    let flags: u64 = if long { 0xa } else { 0xc };
    0x000f_0000_0000_ffff | (flags << 52) | (0x90 | kind as u64) << 40
}

/// Execute/read, accessed.
const CODE: u8 = 0xb;
/// Read/write, accessed.
const DATA: u8 = 0x3;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l: u8::from(long),
        db: u8::from(!long),
        g: 1,
        ..Default::default()
    }
}

fn load_segments(
    memory: &GuestMemoryMmap,
    sregs: &mut kvm_sregs,
    long: bool,
) -> Result<(), GuestMemoryError> {
    // boot.rst: __BOOT_CS 0x10 execute/read, __BOOT_DS 0x18 read/write, flat.
    let table = [0, 0, flat(CODE, long), flat(DATA, false), 0x0000_8b00_0000_0067, 0];
    for (i, descriptor) in table.iter().enumerate() {
        memory.write_obj(*descriptor, GuestAddress(layout::GDT + 8 * i as u64))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(CODE_SELECTOR, CODE, long);
    let data = segment(DATA_SELECTOR, DATA, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy task-state segment must be loaded for VM entry (SDM volume 3C, 26.3.1.2).
    sregs.tr =
        kvm_segment { limit: 0x67, selector: TSS_SELECTOR, type_: 0xb, present: 1, ..Default::default() };
    Ok(())
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// 64-bit mode with the first 4 GiB mapped one to one by 2 MiB pages.
pub(super) fn long_mode(memory: &GuestMemoryMmap, sregs: &mut kvm_sregs) -> Result<(), GuestMemoryError> {
    const PAGE: u64 = 4096;
    let top = layout::PAGE_TABLES;
    let pointers = top + PAGE;
    memory.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(top))?;
    for gib in 0..4 {
        let directory = pointers + PAGE * (1 + gib);
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pointers + 8 * gib))?;
        for i in 0..512 {
            let address = (gib << 30) | (i << 21);
            memory.write_obj(address | LARGE_PAGE | PRESENT_WRITABLE, GuestAddress(directory + 8 * i))?;
        }
    }
    load_segments(memory, sregs, true)?;
    sregs.cr3 = top;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
    Ok(())
}

/// 32-bit protected mode without paging.
pub(super) fn protected_mode(
    memory: &GuestMemoryMmap,
    sregs: &mut kvm_sregs,
) -> Result<(), GuestMemoryError> {
    load_segments(memory, sregs, false)?;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    Ok(())
}
