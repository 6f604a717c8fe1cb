//! Page, segment and interrupt tables, laid out by the compiler so that ring 0 has nothing to compute
//! (Intel SDM volume 3, chapters 3 to 8). Their address is fixed by the linker script.
//!
//! The first 4 GiB are mapped one to one. Accessed and dirty bits are set from the start, so that no
//! processor writes to these tables at a moment of its own choosing.

use core::mem::offset_of;

/// Where the linker script puts [`TABLES`].
const ADDRESS: u64 = 0x40_0000;

/// Where the linker script puts the interrupt stubs, 16 bytes each.
const STUBS: u64 = 0x20_0000;

/// Selector of ring 0's code segment.
const KERNEL_CODE: u16 = 0x08;
/// Selector of ring 3's data segment.
pub(super) const USER_DATA: u16 = 0x18 | 3;
/// Selector of ring 3's code segment.
pub(super) const USER_CODE: u16 = 0x20 | 3;
/// Selector of the task state segment.
pub(super) const TASK_STATE: u16 = 0x28;

/// Exceptions and the sixteen lines of the interrupt controllers.
const VECTORS: usize = 48;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const FIRST_STACK_GUARD: usize = 0x10_0000 / PAGE as usize;

type PageTable = [u64; 512];

#[repr(C, align(4096))]
pub(super) struct Tables {
    level4: PageTable,
    level3: PageTable,
    level2: [PageTable; 4],
    /// The first 2 MiB, in small pages.
    level1: PageTable,
    interrupts: [[u64; 2]; VECTORS],
    segments: [u64; 7],
    /// The task state: only the stack pointer for ring 0 counts, at byte 4.
    task_state: [u32; 26],
    stack: [u64; 64],
}

/// The tables. In a section of their own, which ring 3 cannot reach.
#[unsafe(link_section = ".tables")]
#[unsafe(no_mangle)]
static TABLES: Tables = Tables {
    level4: first_entries([ADDRESS + offset_of!(Tables, level3) as u64]),
    level3: first_entries([level2(0), level2(1), level2(2), level2(3)]),
    level2: [large_pages(0), large_pages(1), large_pages(2), large_pages(3)],
    level1: small_pages(),
    interrupts: gates(),
    segments: [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task_state_low(ADDRESS + offset_of!(Tables, task_state) as u64),
        (ADDRESS + offset_of!(Tables, task_state) as u64) >> 32,
    ],
    task_state: task_state(),
    stack: [0; 64],
};

/// Physical address of the top-level page table.
pub(super) const LEVEL4: u64 = ADDRESS + offset_of!(Tables, level4) as u64;
/// Address and last byte of the interrupt table.
pub(super) const INTERRUPTS: (u64, u16) =
    (ADDRESS + offset_of!(Tables, interrupts) as u64, (VECTORS * 16 - 1) as u16);
/// Address and last byte of the segment table.
pub(super) const SEGMENTS: (u64, u16) = (ADDRESS + offset_of!(Tables, segments) as u64, 7 * 8 - 1);
/// Where ring 0's stack begins, growing down.
pub(super) const STACK: u64 = ADDRESS + offset_of!(Tables, stack) as u64 + 64 * 8;

const fn level2(gigabyte: u64) -> u64 {
    ADDRESS + offset_of!(Tables, level2) as u64 + gigabyte * PAGE
}

const fn first_entries<const N: usize>(tables: [u64; N]) -> PageTable {
    let mut entries = [0; 512];
    let mut i = 0;
    while i < N {
        entries[i] = tables[i] | PRESENT | WRITE | USER | ACCESSED;
        i += 1;
    }
    entries
}

const fn large_pages(gigabyte: u64) -> PageTable {
    let mut entries = [0; 512];
    let mut i = 0;
    while i < 512 {
        let address = (gigabyte * 512 + i as u64) * LARGE_PAGE;
        entries[i] = match address {
            0 => (ADDRESS + offset_of!(Tables, level1) as u64) | PRESENT | WRITE | USER | ACCESSED,
            STUBS => address | PRESENT | USER | ACCESSED | DIRTY | LARGE,
            ADDRESS => address | PRESENT | WRITE | ACCESSED | DIRTY | LARGE,
            _ => address | PRESENT | WRITE | USER | ACCESSED | DIRTY | LARGE,
        };
        i += 1;
    }
    entries
}

const fn small_pages() -> PageTable {
    let mut entries = [0; 512];
    let mut i = 0;
    while i < 512 {
        if i != 0 && i != FIRST_STACK_GUARD {
            entries[i] = (i as u64 * PAGE) | PRESENT | WRITE | USER | ACCESSED | DIRTY;
        }
        i += 1;
    }
    entries
}

const fn gates() -> [[u64; 2]; VECTORS] {
    /// Present, privilege level 0, 64-bit interrupt gate.
    const GATE: u64 = 0x8e00 << 32;
    let mut gates = [[0; 2]; VECTORS];
    let mut vector = 0;
    while vector < VECTORS {
        let stub = STUBS + vector as u64 * 16;
        gates[vector] =
            [(stub & 0xffff) | (KERNEL_CODE as u64) << 16 | GATE | ((stub >> 16) & 0xffff) << 48, stub >> 32];
        vector += 1;
    }
    gates
}

const fn task_state_low(base: u64) -> u64 {
    /// Present, 64-bit task state segment, not busy.
    const KIND: u64 = 0x89 << 40;
    const LAST_BYTE: u64 = 26 * 4 - 1;
    LAST_BYTE | (base & 0xff_ffff) << 16 | KIND | ((base >> 24) & 0xff) << 56
}

const fn task_state() -> [u32; 26] {
    let mut words = [0; 26];
    words[1] = STACK as u32;
    words[2] = (STACK >> 32) as u32;
    // The map of port permissions lies behind the end: no ports for ring 3.
    words[25] = (26 * 4) << 16;
    words
}
