//! The zero page of the Linux 64-bit boot protocol.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{BootImage, SEED_LEN, layout, usable_ram};

const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Boot loader without an assigned number.
const UNDEFINED_LOADER: u8 = 0xff;
const E820_RAM: u32 = 1;
/// `SETUP_RNG_SEED`.
const SETUP_RNG_SEED: u32 = 9;

pub(super) fn write_zero_page(
    memory: &GuestMemoryMmap,
    header: Option<setup_header>,
    initrd: Option<(u64, u64)>,
    image: &BootImage<'_>,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params::default();
    if let Some(header) = header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        params.hdr.kernel_alignment = 0x0100_0000;
    }
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = image.command_line.len() as u32;
    if let Some((start, len)) = initrd {
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    params.hdr.setup_data = layout::SETUP_DATA;
    for (slot, (addr, size)) in params.e820_table.iter_mut().zip(usable_ram(memory)) {
        *slot = boot_e820_entry { addr, size, r#type: E820_RAM };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    write_seed(memory, &image.seed)
}

/// `struct setup_data { u64 next; u32 type; u32 len; u8 data[]; }`
fn write_seed(memory: &GuestMemoryMmap, seed: &[u8; SEED_LEN]) -> Result<(), GuestMemoryError> {
    memory.write_obj(0u64, GuestAddress(layout::SETUP_DATA))?;
    memory.write_obj(SETUP_RNG_SEED, GuestAddress(layout::SETUP_DATA + 8))?;
    memory.write_obj(SEED_LEN as u32, GuestAddress(layout::SETUP_DATA + 12))?;
    memory.write_slice(seed, GuestAddress(layout::SETUP_DATA + 16))
}
