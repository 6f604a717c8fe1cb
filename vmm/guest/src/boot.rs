//! What the boot loader tells: memory map, command line, seed.
//!
//! The layout is that of the Linux x86 boot protocol ("zero page", Documentation/arch/x86/zero-page.rst
//! and boot.rst of the Linux source).

use core::ops::Range;

use smoltcp::wire::{Ipv4Address, Ipv4Cidr};

/// Bytes in `struct boot_params`.
pub const ZERO_PAGE_SIZE: usize = 4096;

const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
const E820_MOST: usize = 128;
const E820_RAM: u32 = 1;
const COMMAND_LINE: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const SETUP_RNG_SEED: u32 = 9;

/// The zero page.
#[derive(Clone, Copy, Debug)]
pub struct ZeroPage<'a>(pub &'a [u8; ZERO_PAGE_SIZE]);

impl ZeroPage<'_> {
    fn u32(self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_le_bytes(bytes)
    }

    fn u64(self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset + 4)) << 32
    }

    /// The RAM region of the memory map that `address` lies in.
    #[must_use]
    pub fn ram_around(self, address: u64) -> Option<Range<u64>> {
        let entries = usize::from(self.0[E820_ENTRIES]).min(E820_MOST);
        (0..entries)
            .map(|index| E820_TABLE + index * E820_ENTRY_SIZE)
            .filter(|&at| self.u32(at + 16) == E820_RAM)
            .map(|at| self.u64(at)..self.u64(at).saturating_add(self.u64(at + 8)))
            .find(|region| region.contains(&address))
    }

    /// The physical address of the command line, which ends with a zero byte. Zero: there is none.
    #[must_use]
    pub fn command_line(self) -> u64 {
        u64::from(self.u32(COMMAND_LINE))
    }

    /// A seed from the list of `setup_data`, read through `read`, which fills a buffer from a physical
    /// address and says whether it could.
    #[must_use]
    pub fn seed(self, read: impl Fn(u64, &mut [u8]) -> bool) -> Option<u64> {
        let mut at = self.u64(SETUP_DATA);
        // A list that goes round must end, too.
        for _ in 0..64 {
            let mut head = [0; 16];
            if at == 0 || !read(at, &mut head) {
                return None;
            }
            let [next, rest] = [0, 8].map(|from| {
                let mut word = [0; 8];
                word.copy_from_slice(&head[from..from + 8]);
                u64::from_le_bytes(word)
            });
            let (kind, len) = (rest as u32, rest >> 32);
            if kind == SETUP_RNG_SEED && len >= 8 {
                let mut seed = [0; 8];
                return read(at + 16, &mut seed).then(|| u64::from_le_bytes(seed));
            }
            at = next;
        }
        None
    }
}

/// A virtio-mmio device, as `virtio_mmio.device=SIZE@BASE:IRQ` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Physical address of its registers.
    pub base: u64,
    /// Its interrupt line, 0 to 15.
    pub irq: u8,
}

/// The command line: words between spaces.
#[derive(Clone, Copy, Debug)]
pub struct CommandLine<'a>(pub &'a str);

impl<'a> CommandLine<'a> {
    /// The values of all words `key=value`, in order.
    pub fn values(self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.split_ascii_whitespace().filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The virtio-mmio devices. Words that make no sense are left out.
    pub fn devices(self) -> impl Iterator<Item = MmioDevice> {
        self.values("virtio_mmio.device").filter_map(|text| {
            let (_, place) = text.split_once('@')?;
            let mut parts = place.split(':');
            let base = number(parts.next()?)?;
            let irq = u8::try_from(number(parts.next()?)?).ok()?;
            (irq < 16).then_some(MmioDevice { base, irq })
        })
    }

    /// The last value of a key as a number.
    #[must_use]
    pub fn number(self, key: &str) -> Option<u64> {
        number(self.values(key).last()?)
    }

    /// The address of the machine and how long its network's prefix is: `ip=10.77.0.2/24`.
    #[must_use]
    pub fn address(self) -> Option<Ipv4Cidr> {
        let (address, prefix) = self.values("ip").last()?.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|&prefix| prefix <= 32)?;
        let address: Ipv4Address = address.parse().ok()?;
        (!address.is_unspecified() && !address.is_multicast() && !address.is_broadcast())
            .then(|| Ipv4Cidr::new(address, prefix))
    }

    /// The address of the router: `gw=10.77.0.1`.
    #[must_use]
    pub fn gateway(self) -> Option<Ipv4Address> {
        self.values("gw").last()?.parse().ok()
    }
}

/// Reads a number, hexadecimal after `0x`, decimal otherwise.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn page(entries: &[(u64, u64, u32)]) -> [u8; ZERO_PAGE_SIZE] {
        let mut page = [0; ZERO_PAGE_SIZE];
        page[E820_ENTRIES] = entries.len() as u8;
        for (index, (start, len, kind)) in entries.iter().enumerate() {
            let at = E820_TABLE + index * E820_ENTRY_SIZE;
            page[at..at + 8].copy_from_slice(&start.to_le_bytes());
            page[at + 8..at + 16].copy_from_slice(&len.to_le_bytes());
            page[at + 16..at + 20].copy_from_slice(&kind.to_le_bytes());
        }
        page
    }

    #[test]
    fn the_region_around_the_image_is_found() {
        let page = page(&[(0, 0x9fc00, 1), (0xf0000, 0x10000, 2), (0x10_0000, 0x3f0_0000, 1)]);
        assert_eq!(ZeroPage(&page).ram_around(0x20_0000), Some(0x10_0000..0x400_0000));
        assert_eq!(ZeroPage(&page).ram_around(0xf0000), None);
    }

    #[test]
    fn a_command_line_is_read() {
        let line = CommandLine(
            "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6:1 \
             virtio_mmio.device=4K@x:5 tandem.doorbell=0xd00ff000 ip=10.77.0.2/24 gw=10.77.0.1",
        );
        let devices: Vec<MmioDevice> = line.devices().collect();
        assert_eq!(
            devices,
            [MmioDevice { base: 0xd000_0000, irq: 5 }, MmioDevice { base: 0xd000_1000, irq: 6 }]
        );
        assert_eq!(line.number("tandem.doorbell"), Some(0xd00f_f000));
        assert_eq!(line.address(), Some(Ipv4Cidr::new(Ipv4Address::new(10, 77, 0, 2), 24)));
        assert_eq!(line.gateway(), Some(Ipv4Address::new(10, 77, 0, 1)));
        for bad in ["", "ip=", "ip=10.77.0.2", "ip=10.77.0.2/33", "ip=0.0.0.0/8", "ip=224.0.0.1/4"] {
            assert_eq!(CommandLine(bad).address(), None, "{bad}");
        }
    }

    #[test]
    fn the_seed_is_found_in_the_list() {
        let mut memory = [0u8; 256];
        memory[16..24].copy_from_slice(&64u64.to_le_bytes());
        memory[24] = 5;
        memory[64 + 8] = SETUP_RNG_SEED as u8;
        memory[64 + 12] = 32;
        memory[64 + 16..64 + 24].copy_from_slice(&0x1234_5678_9abc_def0u64.to_le_bytes());
        let read = |at: u64, buffer: &mut [u8]| match memory.get(at as usize..at as usize + buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                true
            }
            None => false,
        };
        let mut page = [0; ZERO_PAGE_SIZE];
        assert_eq!(ZeroPage(&page).seed(read), None);
        page[SETUP_DATA] = 16;
        assert_eq!(ZeroPage(&page).seed(read), Some(0x1234_5678_9abc_def0));
        // A list that leads to itself ends.
        page[SETUP_DATA] = 128;
        let circle = |at: u64, buffer: &mut [u8]| {
            buffer.fill(0);
            buffer[0] = 128;
            at == 128
        };
        assert_eq!(ZeroPage(&page).seed(circle), None);
    }

    proptest! {
        #[test]
        fn arbitrary_command_lines_and_pages_never_panic(line in ".*", bytes in proptest::collection::vec(any::<u8>(), ZERO_PAGE_SIZE)) {
            let line = CommandLine(&line);
            let _ = (line.devices().count(), line.address(), line.gateway(), line.number("tandem.doorbell"));
            let page: &[u8; ZERO_PAGE_SIZE] = bytes.as_slice().try_into().unwrap();
            let _ = (ZeroPage(page).ram_around(0x20_0000), ZeroPage(page).seed(|_, _| false));
        }
    }
}
