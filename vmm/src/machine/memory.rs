//! Guest memory: one memfd, mapped shared, in at most two regions around the MMIO hole.
//!
//! ```text
//! 0 ───────────── RAM ───────────── 0xd000_0000 ── MMIO ── 4 GiB ─────── the rest of RAM ───────
//! └ file offset 0                                            └ file offset 0xd000_0000
//! ```
//!
//! The file behind it is the machine's own: making it, and mapping it, are the only system calls
//! of this ring besides KVM's. Memory starts as zeros and is changed by the guest, by device DMA at a
//! position, and by a state transfer; a machine that is compared with its peer is compared page by page.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, VolatileSlice,
};

/// Guest physical memory as devices see it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Guest memory from `address` on, `len` bytes of it; `None` if not all of that is RAM.
#[must_use]
pub fn ram(mem: &GuestMemory, address: u64, len: u64) -> Option<VolatileSlice<'_>> {
    // Two regions at most, with a hole between them: no range lies in both.
    mem.iter().find_map(|region| {
        let offset = address.checked_sub(region.start_addr().0)?;
        let rest = region.len().checked_sub(offset)?;
        (len <= rest).then(|| region.get_slice(MemoryRegionAddress(offset), len as usize).ok())?
    })
}

/// Bytes in a page, and the granularity of guest memory.
pub const PAGE_SIZE: usize = 4096;

/// Where RAM below 4 GiB ends at the latest and the device window begins.
pub const MMIO_START: u64 = 0xd000_0000;

/// Where the device window ends and the rest of RAM begins.
pub const MMIO_END: u64 = 1 << 32;

/// The least memory a machine can have: room for a kernel at 1 MiB.
pub const MIN_RAM: u64 = 2 << 20;

/// The most memory a machine can have: 40 bits of physical address less the hole.
pub const MAX_RAM: u64 = (1 << 40) - (MMIO_END - MMIO_START);

/// Start of the extended BIOS data area, which conventional memory ends at (IBM PC convention).
const EBDA_START: u64 = 0x9_fc00;

/// Start of RAM above the legacy video and ROM area.
const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Pages read from the memory file at a time.
const READ_AHEAD: usize = 32;

/// A page of memory.
pub type Page = [u8; PAGE_SIZE];

/// What the firmware's memory map says of a range (ACPI 6.5, table 15.2 "address range types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum E820Kind {
    /// Usable by the guest's operating system.
    Ram,
    /// Not usable as memory.
    Reserved,
}

impl E820Kind {
    /// The number the boot protocol uses: 1 or 2.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// One row of the e820 memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct E820Entry {
    /// Guest physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What the range is.
    pub kind: E820Kind,
}

/// A contiguous range of RAM, as `KVM_SET_USER_MEMORY_REGION` wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSlot {
    /// Slot number, counted from zero.
    pub slot: u32,
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Bytes, a multiple of [`PAGE_SIZE`].
    pub size: u64,
    /// Where this process has it mapped; valid as long as the [`GuestRam`] lives.
    pub host_address: u64,
}

/// Why guest memory could not be made or accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size asked for is out of range or not whole pages.
    #[error(
        "guest memory of {0} bytes: must be a multiple of {PAGE_SIZE}, from {MIN_RAM} to {MAX_RAM} bytes"
    )]
    Size(u64),
    /// The kernel refused to make or read the memory file.
    #[error("cannot make or read the guest's memory file of {size} bytes")]
    File {
        /// Its size in bytes.
        size: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to map the memory file.
    #[error("cannot map {size} bytes of guest memory at {start:#x}")]
    Map {
        /// Guest physical address.
        start: u64,
        /// Bytes asked for.
        size: u64,
        /// The kernel's answer.
        #[source]
        source: MmapRegionError,
    },
    /// The regions do not fit together.
    #[error("guest memory regions overlap")]
    Layout,
    /// There is no RAM in this page.
    #[error("page {0:#x} is not in guest memory")]
    NoSuchPage(u64),
}

/// The RAM of one machine.
///
/// Cloning it gives a second handle to the same memory.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    file: Arc<File>,
    size: u64,
}

impl GuestRam {
    /// Makes `size` bytes of zeroed guest memory. Nothing is reserved: a page costs when it is touched.
    ///
    /// # Errors
    /// [`MemoryError::Size`] for a size that no machine has; otherwise what the kernel refused.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        if !size.is_multiple_of(PAGE_SIZE as u64) || !(MIN_RAM..=MAX_RAM).contains(&size) {
            return Err(MemoryError::Size(size));
        }
        let file = Arc::new(memory_file(size).map_err(|source| MemoryError::File { size, source })?);
        let low = size.min(MMIO_START);
        let mut regions = vec![map(&file, 0, 0, low)?];
        if size > low {
            regions.push(map(&file, MMIO_END, low, size - low)?);
        }
        let memory = GuestMemory::from_regions(regions).map_err(|_| MemoryError::Layout)?;
        Ok(Self { memory, file, size })
    }

    /// Guest physical memory, for devices and loaders.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memory file: RAM below the hole from offset 0, the rest right after it.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The memory slots to give to KVM, in order of address.
    pub fn slots(&self) -> impl Iterator<Item = RamSlot> + '_ {
        self.memory.iter().zip(0..).map(|(region, slot)| RamSlot {
            slot,
            guest_address: region.start_addr().0,
            size: region.len(),
            host_address: region.as_ptr() as u64,
        })
    }

    /// The firmware's memory map: conventional memory up to the EBDA, RAM from 1 MiB to the hole, the rest
    /// from 4 GiB. What is in no row is not RAM.
    #[must_use]
    pub fn e820(&self) -> Vec<E820Entry> {
        let ram = |start, end| E820Entry { start, size: end - start, kind: E820Kind::Ram };
        let low_end = self.size.min(MMIO_START);
        let mut map = vec![
            ram(0, EBDA_START),
            E820Entry { start: EBDA_START, size: HIGH_MEMORY_START - EBDA_START, kind: E820Kind::Reserved },
            ram(HIGH_MEMORY_START, low_end),
        ];
        if self.size > low_end {
            map.push(ram(MMIO_END, MMIO_END + (self.size - low_end)));
        }
        map
    }

    /// The numbers of all pages, rising. A page's number is its guest physical address / [`PAGE_SIZE`].
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.memory.iter().flat_map(|region| {
            let first = region.start_addr().0 / PAGE_SIZE as u64;
            first..first + region.len() / PAGE_SIZE as u64
        })
    }

    /// Copies page `number` into `page`.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`] if there is no RAM in it.
    pub fn read_page(&self, number: u64, page: &mut Page) -> Result<(), MemoryError> {
        self.memory.read_slice(page, page_address(number)?).map_err(|_| MemoryError::NoSuchPage(number))
    }

    /// Replaces page `number` by `page`.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPage`] if there is no RAM in it; nothing is written then.
    pub fn write_page(&self, number: u64, page: &Page) -> Result<(), MemoryError> {
        self.memory.write_slice(page, page_address(number)?).map_err(|_| MemoryError::NoSuchPage(number))
    }

    /// Calls `visit` with each page's number and a copy of its content, in order of number. The vCPU must be
    /// stopped if the copies are to belong together.
    ///
    /// It reads the file, not the mapping: reading a page that was never touched through the mapping would make
    /// it cost memory.
    ///
    /// # Errors
    /// What the kernel answered if it refuses to read its own memory file.
    pub fn for_each_page(&self, mut visit: impl FnMut(u64, &Page)) -> Result<(), MemoryError> {
        let mut buffer = vec![0; READ_AHEAD * PAGE_SIZE].into_boxed_slice();
        let mut numbers = self.pages();
        let mut offset = 0;
        while offset < self.size {
            let len = (self.size - offset).min(buffer.len() as u64) as usize;
            let pages = &mut buffer[..len];
            self.file
                .read_exact_at(pages, offset)
                .map_err(|source| MemoryError::File { size: self.size, source })?;
            for (page, number) in pages.as_chunks().0.iter().zip(&mut numbers) {
                visit(number, page);
            }
            offset += len as u64;
        }
        Ok(())
    }
}

fn page_address(number: u64) -> Result<GuestAddress, MemoryError> {
    number.checked_mul(PAGE_SIZE as u64).map(GuestAddress).ok_or(MemoryError::NoSuchPage(number))
}

/// A memory file of `size` bytes that can be neither shrunk nor grown, so that a mapping of it cannot fault.
fn memory_file(size: u64) -> io::Result<File> {
    // SAFETY: the name is a valid C string, and the call has no other memory arguments.
    let fd =
        unsafe { libc::memfd_create(c"tandem-guest".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, is valid and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    // SAFETY: the descriptor is open and F_ADD_SEALS takes an integer.
    let sealed = unsafe {
        libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)
    };
    if sealed < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn map(file: &Arc<File>, start: u64, offset: u64, size: u64) -> Result<GuestRegionMmap<()>, MemoryError> {
    let region = MmapRegionBuilder::new(size as usize)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(|source| MemoryError::Map { start, size, source })?;
    GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Layout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_no_machine_has_are_refused() {
        for size in [0, 1, MIN_RAM - 4096, MIN_RAM + 1, MAX_RAM + 4096, u64::MAX] {
            assert!(matches!(GuestRam::new(size), Err(MemoryError::Size(s)) if s == size), "{size}");
        }
    }

    #[test]
    fn small_memory_is_one_slot_with_the_legacy_area_left_out() {
        let ram = GuestRam::new(16 << 20).unwrap();
        let slots: Vec<_> = ram.slots().collect();
        assert_eq!(slots.len(), 1);
        assert_eq!((slots[0].slot, slots[0].guest_address, slots[0].size), (0, 0, 16 << 20));
        assert_eq!(ram.pages().count(), (16 << 20) / PAGE_SIZE);
        assert_eq!(ram.file().metadata().unwrap().len(), 16 << 20);
        let map = ram.e820();
        assert_eq!(map.len(), 3);
        assert_eq!(map[2], E820Entry { start: 0x10_0000, size: 15 << 20, kind: E820Kind::Ram });
        assert!(map.windows(2).all(|w| w[0].start + w[0].size == w[1].start), "{map:?}");
    }

    #[test]
    fn large_memory_goes_on_above_the_hole() {
        let above = 8 << 20;
        let ram = GuestRam::new(MMIO_START + above).unwrap();
        let slots: Vec<_> = ram.slots().collect();
        assert_eq!((slots[1].slot, slots[1].guest_address, slots[1].size), (1, MMIO_END, above));
        assert_eq!(
            ram.e820().last().unwrap(),
            &E820Entry { start: MMIO_END, size: above, kind: E820Kind::Ram }
        );
        assert_eq!(
            ram.e820().iter().filter(|e| e.start < MMIO_END && e.start + e.size > MMIO_START).count(),
            0
        );
        let last = (MMIO_END + above) / PAGE_SIZE as u64 - 1;
        assert_eq!(ram.pages().last(), Some(last));
        ram.write_page(last, &[0x5a; PAGE_SIZE]).unwrap();
        let mut page = [0; PAGE_SIZE];
        ram.read_page(last, &mut page).unwrap();
        assert_eq!(page, [0x5a; PAGE_SIZE]);
        for hole in [MMIO_START, MMIO_END - 4096, MMIO_END + above, u64::MAX - 4095] {
            let number = hole / PAGE_SIZE as u64;
            assert!(
                matches!(ram.read_page(number, &mut page), Err(MemoryError::NoSuchPage(n)) if n == number)
            );
            assert!(ram.write_page(number, &page).is_err());
        }
        assert!(ram.read_page(u64::MAX, &mut page).is_err());
    }

    #[test]
    fn every_page_is_visited_once_in_order() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        ram.memory().write_obj(0x1122_3344u32, GuestAddress(5 * 4096 + 8)).unwrap();
        let mut seen = Vec::new();
        let mut changed = Vec::new();
        ram.for_each_page(|number, page| {
            seen.push(number);
            if page.iter().any(|&b| b != 0) {
                changed.push((number, u32::from_le_bytes(page[8..12].try_into().unwrap())));
            }
        })
        .unwrap();
        assert_eq!(seen, (0..MIN_RAM / 4096).collect::<Vec<_>>());
        assert_eq!(changed, [(5, 0x1122_3344)]);
    }

    #[test]
    fn looking_at_memory_does_not_make_it_cost() {
        use std::os::unix::fs::MetadataExt;
        let ram = GuestRam::new(64 << 20).unwrap();
        ram.write_page(77, &[1; PAGE_SIZE]).unwrap();
        let mut pages = 0;
        ram.for_each_page(|_, _| pages += 1).unwrap();
        assert_eq!(pages, (64 << 20) / PAGE_SIZE);
        // A huge page at most, where the kernel backs memory files by them.
        assert!(ram.file().metadata().unwrap().blocks() * 512 <= 2 << 20);
    }

    #[test]
    fn pages_above_the_hole_have_their_own_numbers_and_content() {
        let ram = GuestRam::new(MMIO_START + (1 << 20)).unwrap();
        let above = MMIO_END / PAGE_SIZE as u64;
        ram.write_page(above + 5, &[5; PAGE_SIZE]).unwrap();
        let mut page = [0; PAGE_SIZE];
        ram.file().read_exact_at(&mut page, MMIO_START + 5 * PAGE_SIZE as u64).unwrap();
        assert_eq!(page, [5; PAGE_SIZE]);
        assert_eq!(ram.pages().nth((MMIO_START / PAGE_SIZE as u64) as usize), Some(above));
    }

    #[test]
    fn the_memory_file_cannot_be_resized_under_its_mapping() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        assert!(ram.file().set_len(MIN_RAM / 2).is_err());
        assert!(ram.file().set_len(MIN_RAM * 2).is_err());
    }
}
