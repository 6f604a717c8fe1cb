//! The start info of the PVH boot protocol (xen/include/public/arch-x86/hvm/start_info.h).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{layout, usable_ram};

/// `XEN_HVM_START_MAGIC_VALUE`, "xEn3".
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u64 = 1;
const MODULE_LEN: u64 = 32;
const MAP_ENTRY_LEN: u64 = 24;

pub(super) fn write_start_info(
    memory: &GuestMemoryMmap,
    initrd: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<(), GuestMemoryError> {
    let modules = layout::PVH_TABLES;
    let map = modules + MODULE_LEN;
    if let Some((start, len)) = initrd {
        for (i, word) in [start, len, 0, 0].into_iter().enumerate() {
            memory.write_obj(word, GuestAddress(modules + 8 * i as u64))?;
        }
    }
    let ram = usable_ram(memory);
    for (i, &(start, len)) in ram.iter().enumerate() {
        for (j, word) in [start, len, RAM].into_iter().enumerate() {
            memory.write_obj(word, GuestAddress(map + MAP_ENTRY_LEN * i as u64 + 8 * j as u64))?;
        }
    }
    let present = u32::from(initrd.is_some());
    let words: [u64; 7] = [
        u64::from(MAGIC) | u64::from(VERSION) << 32,
        // flags, nr_modules
        u64::from(present) << 32,
        if present == 1 { modules } else { 0 },
        layout::COMMAND_LINE,
        rsdp,
        map,
        ram.len() as u64,
    ];
    for (i, word) in words.into_iter().enumerate() {
        memory.write_obj(word, GuestAddress(layout::ZERO_PAGE + 8 * i as u64))?;
    }
    Ok(())
}
