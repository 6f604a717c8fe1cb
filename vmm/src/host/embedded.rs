//! The embedded guest, linked into the command.

/// The image of the embedded guest: an ELF64 file, statically linked at fixed physical addresses from
/// 2 MiB up, entered in ring 0 by the 64-bit Linux boot protocol. It serves the Redis protocol on its first
/// virtio network device, and reads from the command line `ip=ADDRESS/PREFIX`, `gw=ADDRESS`,
/// `virtio_mmio.device=` and `tandem.doorbell=ADDRESS` (see `vmm/guest`).
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

#[cfg(test)]
mod tests {
    use super::IMAGE;

    fn word<const N: usize>(at: usize) -> [u8; N] {
        IMAGE[at..at + N].try_into().expect("inside the file")
    }

    /// What the loader relies on (ELF64: System V ABI, chapters 4 and 5).
    #[test]
    fn the_image_is_a_static_elf64_between_2_and_16_mib() {
        assert_eq!(&IMAGE[..6], b"\x7fELF\x02\x01");
        assert_eq!(u16::from_le_bytes(word(16)), 2, "an executable at fixed addresses");
        let entry = u64::from_le_bytes(word(24));
        let (table, count) = (u64::from_le_bytes(word(32)) as usize, u16::from_le_bytes(word(56)));
        let mut holds_entry = false;
        for index in 0..usize::from(count) {
            let at = table + index * 56;
            if u32::from_le_bytes(word(at)) != 1 {
                continue;
            }
            let [virt, phys, file_size, size] =
                [16, 24, 32, 40].map(|field| u64::from_le_bytes(word(at + field)));
            assert_eq!(virt, phys);
            assert!(file_size <= size && phys >= 2 << 20 && phys + size <= 16 << 20);
            holds_entry |= (phys..phys + file_size).contains(&entry);
        }
        assert!(holds_entry);
    }

    #[test]
    fn the_image_tells_nothing_of_where_it_was_built() {
        let checkout = concat!(env!("CARGO_MANIFEST_DIR"), "/").as_bytes();
        let out = env!("OUT_DIR").as_bytes();
        for path in [checkout, out, b"/registry/src/"] {
            assert!(!IMAGE.windows(path.len()).any(|window| window == path));
        }
    }
}
