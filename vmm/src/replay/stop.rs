//! Forced stops: the state that is shipped when the guest computes without an exit.
//!
//! The primary stops the guest anywhere and ships its registers and every page that the guest may have
//! written since the backup's last known state; the backup, halted at the last exit, loads them. The
//! page set is what KVM's dirty log has collected since its last reset, which lies at or before that
//! exit: a superset of what is needed. `ResetPolicy` keeps it small, `HotPages` keeps it cheap. Of each page the
//! lines travel that are not as they were last shipped (`Shipped`).
//!
//! A guest that has written much is shipped in parts, each small enough for a frame of the log. They count
//! only together: a backup whose log ends between two of them goes on from the exit before.

use lz4::block::CompressionMode;
use rkyv::de::Pool;
use rkyv::rancor::{Error as RkyvError, Strategy};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::machine::cpu::image::VcpuImage;
use crate::machine::memory::{GuestRam, MemoryError, PAGE_SIZE};
use crate::machine::vm::{Machine, MachineError};

use super::hot_pages::HotPages;
use super::shipped::{LINE, Shipped};

/// Pages in one part of a forced stop: 1 MiB.
pub const PART_PAGES: usize = 256;

/// Largest unpacked part, in bytes.
const PART_LIMIT: usize = PART_PAGES * PAGE_SIZE + (1 << 20);

/// How hastily parts are compressed. At 8 a page of program text takes 6 µs and is 83 % of itself, at LZ4's usual 1 it takes 14 and
/// is 71 %; what compresses well is quick in any case. The guest stands still meanwhile.
const HASTE: CompressionMode = CompressionMode::FAST(8);

/// Bits of the byte before each packed part.
mod mark {
    /// Another part follows.
    pub(super) const MORE: u8 = 1;
    /// It is as it was archived.
    pub(super) const PLAIN: u8 = 2;
}

/// Bytes before what is in a packed part: the mark, and the archive's length.
const HEAD: usize = 5;

/// Bytes before an archive for its head, such that it is aligned.
const ROOM: usize = 16;

/// How a part travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As it is: 5,200 instructions a page, for all that the primary does with it but sending.
    Plain,
    /// In LZ4: a quarter of the bytes, or nearly all of them, for 25,000 instructions a page.
    Lz4,
}

/// What a forced stop ships, before it is packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    vcpu: VcpuImage,
    /// Numbers of the pages that were written.
    pages: Vec<u64>,
}

/// One part of it, with what the pages contain.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct StopImage {
    /// The vCPU; empty in all parts but the last.
    pub vcpu: VcpuImage,
    /// Parts of forced stops before this one, of all that this recorder has made.
    pub part: u64,
    /// Numbers of the pages.
    pub pages: Vec<u64>,
    /// Of each page, the lines that are not as last shipped, a bit each.
    pub changed: Vec<u64>,
    /// These lines, one after the other.
    pub lines: Vec<u8>,
}

/// A stop image that cannot be made or used.
#[derive(Debug, Error)]
pub enum StopError {
    /// The machine refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A page lies outside memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The bytes are not a stop image.
    #[error("a forced stop's image is damaged: {0}")]
    Damaged(&'static str),
}

/// How useful the shipped pages were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopCounts {
    /// Forced stops.
    pub stops: u64,
    /// Pages shipped.
    pub pages: u64,
    /// Of these, pages that the receiver had already, byte for byte (known where they are loaded).
    pub already_there: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes on the wire.
    pub packed_bytes: u64,
}

impl Stopped {
    /// Captures the machine, which stands between two instructions, with all pages in the dirty log; resets
    /// the log, but for those that are `hot`.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn capture(machine: &mut Machine, hot: &mut HotPages) -> Result<Self, StopError> {
        let vcpu = machine.capture_vcpu()?;
        Ok(Self { vcpu, pages: machine.take_dirty_pages(|written| hot.look(written))? })
    }

    /// The vCPU's state.
    #[must_use]
    pub const fn vcpu(&self) -> &VcpuImage {
        &self.vcpu
    }

    /// Pages that are shipped.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Parts that it is shipped in, at least one.
    #[must_use]
    pub const fn parts(&self) -> usize {
        if self.pages.is_empty() { 1 } else { self.pages.len().div_ceil(PART_PAGES) }
    }
}

/// Packs the stops of one recorder, one after the other, in memory that is used again.
#[derive(Debug, Default)]
pub struct Packer {
    shipped: Shipped,
    image: StopImage,
    archive: AlignedVec,
    packed: Vec<u8>,
}

impl Packer {
    /// Packs part `number` of a stop, of the machine's memory as it is. Every part of every stop, in order.
    ///
    /// # Errors
    /// When memory cannot be read.
    pub fn part(
        &mut self,
        stopped: &Stopped,
        number: usize,
        ram: &GuestRam,
        packing: Packing,
    ) -> Result<&[u8], StopError> {
        let last = number + 1 >= stopped.parts();
        let image = &mut self.image;
        image.vcpu = if last { stopped.vcpu.clone() } else { VcpuImage::default() };
        image.part = self.shipped.parts();
        image.pages.clear();
        image.changed.clear();
        image.lines.clear();
        image.pages.extend_from_slice(stopped.pages.chunks(PART_PAGES).nth(number).unwrap_or_default());
        let mut page = [0; PAGE_SIZE];
        for number in &image.pages {
            ram.read_page(*number, &mut page)?;
            image.changed.push(self.shipped.ship(*number, &page, &mut image.lines));
        }
        self.shipped.next_part();
        image.pack_into(last, packing, &mut self.archive, &mut self.packed)
    }
}

/// Whether a packed part is the last of its stop; `None` if it is no part.
#[must_use]
pub fn is_last(packed: &[u8]) -> Option<bool> {
    let mark = *packed.first()?;
    (mark & !(mark::MORE | mark::PLAIN) == 0).then_some(mark & mark::MORE == 0)
}

impl StopImage {
    /// Packs the image as a part of its stop, `last` or not: a mark, the archive's length, and the archive.
    ///
    /// # Errors
    /// When it has more pages than a part may have.
    pub fn pack(&self, last: bool, packing: Packing) -> Result<Vec<u8>, StopError> {
        Ok(self.pack_into(last, packing, &mut AlignedVec::new(), &mut Vec::new())?.to_vec())
    }

    /// As [`StopImage::pack`], in `archive`, or by way of it in `packed`.
    fn pack_into<'a>(
        &self,
        last: bool,
        packing: Packing,
        archive: &'a mut AlignedVec,
        packed: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], StopError> {
        archive.clear();
        archive.resize(ROOM, 0);
        let written = rkyv::api::high::to_bytes_in::<_, RkyvError>(self, std::mem::take(archive));
        *archive = written.map_err(|_| StopError::Damaged("not archivable"))?;
        let len = archive.len() - ROOM;
        if len > PART_LIMIT {
            return Err(StopError::Damaged("too many pages"));
        }
        let more = if last { 0 } else { mark::MORE };
        let head = |mark: u8, to: &mut [u8]| {
            to[0] = mark;
            to[1..HEAD].copy_from_slice(&(len as u32).to_le_bytes());
        };
        match packing {
            Packing::Plain => {
                let part = &mut archive[ROOM - HEAD..];
                head(more | mark::PLAIN, part);
                Ok(part)
            }
            Packing::Lz4 => {
                let incompressible = |_| StopError::Damaged("not compressible");
                let room = HEAD + lz4::block::compress_bound(len).map_err(incompressible)?;
                if packed.len() < room {
                    packed.resize(room, 0);
                }
                head(more, packed);
                let (from, to) = (&archive[ROOM..], &mut packed[HEAD..]);
                let len =
                    lz4::block::compress_to_buffer(from, Some(HASTE), false, to).map_err(incompressible)?;
                Ok(&packed[..HEAD + len])
            }
        }
    }

    /// Unpacks a part.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn unpack(packed: &[u8]) -> Result<Self, StopError> {
        Unpacker::default().part(packed).and_then(owned)
    }

    /// Reads the archive of an image, at any alignment.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn from_archive(bytes: &[u8]) -> Result<Self, StopError> {
        let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        checked(&aligned).and_then(owned)
    }

    /// Loads the pages into memory. `shipped` has seen every part before
    /// this one, and no other.
    ///
    /// # Errors
    /// When a page lies outside it, or parts are missing.
    pub fn load_pages(
        &self,
        ram: &GuestRam,
        shipped: &mut Shipped,
        counts: &mut StopCounts,
    ) -> Result<(), StopError> {
        let pages = self.pages.iter().copied().zip(self.changed.iter().copied());
        load_pages(self.part, pages, &self.lines, ram, shipped, counts)
    }
}

fn load_pages(
    part: u64,
    pages: impl ExactSizeIterator<Item = (u64, u64)>,
    lines: &[u8],
    ram: &GuestRam,
    shipped: &mut Shipped,
    counts: &mut StopCounts,
) -> Result<(), StopError> {
    if part != shipped.parts() {
        return Err(StopError::Damaged("a part before it is missing"));
    }
    shipped.next_part();
    counts.pages += pages.len() as u64;
    counts.raw_bytes += (pages.len() * PAGE_SIZE) as u64;
    let mut old = [0; PAGE_SIZE];
    let mut lines = lines.as_chunks::<LINE>().0;
    for (number, changed) in pages {
        ram.read_page(number, &mut old)?;
        let page = shipped
            .receive(number, changed, &mut lines)
            .ok_or(StopError::Damaged("pages and lines do not match"))?;
        if old == *page {
            counts.already_there += 1;
        } else {
            ram.write_page(number, page)?;
        }
    }
    Ok(())
}

const INVALID: StopError = StopError::Damaged("not a valid archive");

/// An archive of an image, if it is one.
fn checked(archive: &[u8]) -> Result<&ArchivedStopImage, StopError> {
    let image = rkyv::access::<ArchivedStopImage, RkyvError>(archive).map_err(|_| INVALID)?;
    let lines: usize = image.changed.iter().map(|changed| changed.to_native().count_ones() as usize).sum();
    if image.changed.len() != image.pages.len() || image.lines.len() != lines * LINE {
        return Err(StopError::Damaged("pages and lines do not match"));
    }
    Ok(image)
}

/// A copy of its own of what is archived.
fn owned<T: Archive<Archived: Deserialize<T, Strategy<Pool, RkyvError>>>>(
    archived: &T::Archived,
) -> Result<T, StopError> {
    rkyv::deserialize(archived).map_err(|_: RkyvError| INVALID)
}

/// Unpacks parts one after the other, in memory that is used again: a part takes a megabyte, and fresh memory of that
/// size costs more than to unpack it.
#[derive(Debug, Default)]
pub struct Unpacker {
    archive: AlignedVec<16>,
}

impl Unpacker {
    /// The image in a packed part, where it was unpacked.
    fn part(&mut self, packed: &[u8]) -> Result<&ArchivedStopImage, StopError> {
        let ([mark, len @ ..], packed) =
            packed.split_first_chunk::<HEAD>().ok_or(StopError::Damaged("too short"))?;
        let len = u32::from_le_bytes(*len) as usize;
        // No byte of LZ4 stands for more than 255: a damaged length does not cost memory.
        if len > PART_LIMIT.min(packed.len().saturating_mul(255)) {
            return Err(StopError::Damaged("too large"));
        }
        if self.archive.len() < len {
            self.archive.resize(len, 0);
        }
        let archive = &mut self.archive[..len];
        if mark & mark::PLAIN != 0 {
            if packed.len() != len {
                return Err(StopError::Damaged("of another length than it says"));
            }
            // To where it is aligned.
            archive.copy_from_slice(packed);
        } else if lz4_flex::block::decompress_into(packed, archive).ok() != Some(len) {
            return Err(StopError::Damaged("not LZ4"));
        }
        checked(archive)
    }
}

/// Loads a stop's vCPU on either side, the one that made it too: what the CPU and KVM have cached of the guest's page
/// tables, and what cannot be seen in the image, is then equally forgotten on both.
///
/// # Errors
/// When KVM refuses it.
pub fn settle_in(machine: &mut Machine, vcpu: &VcpuImage) -> Result<(), StopError> {
    machine.drop_shadow()?;
    Ok(machine.load_vcpu(vcpu)?)
}

/// Loads a whole stop, all its parts in order, into a machine that stands at the exit before it. `shipped` has seen
/// all stops before, and no other.
///
/// # Errors
/// When a part is damaged, a page lies outside memory, or KVM refuses the registers.
pub fn load<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
    machine: &mut Machine,
    unpacker: &mut Unpacker,
    shipped: &mut Shipped,
    counts: &mut StopCounts,
) -> Result<(), StopError> {
    // First: an unfinished exit would write its answer over what is loaded.
    machine.settle()?;
    let mut vcpu = None;
    for packed in parts {
        let image = unpacker.part(packed)?;
        let pages = image.pages.iter().zip(image.changed.iter());
        let pages = pages.map(|(number, changed)| (number.to_native(), changed.to_native()));
        load_pages(image.part.to_native(), pages, &image.lines, machine.ram(), shipped, counts)?;
        counts.packed_bytes += packed.len() as u64;
        vcpu = Some(owned(&image.vcpu)?);
    }
    settle_in(machine, &vcpu.ok_or(StopError::Damaged("no part"))?)?;
    counts.stops += 1;
    Ok(())
}

/// When to reset the dirty log at an exit, so that a forced stop ships few pages that the backup has
/// already.
///
/// A reset write-protects guest memory again, and the first write to each page then costs a fault: too
/// many resets slow the guest, too few make the page set grow. Resets are frequent while forced stops
/// happen, and rare otherwise; and the rarer, the longer a stop takes: a fault costs about as much as to ship a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetPolicy {
    /// Host time of the last reset, in nanoseconds.
    last: u64,
    /// Interval between resets, in nanoseconds.
    interval: u64,
}

impl ResetPolicy {
    /// The interval right after a forced stop, where stops are quick.
    pub const SHORTEST: u64 = 1_000_000;
    /// The interval of a guest that is never stopped.
    pub const LONGEST: u64 = 128_000_000;
    /// The interval right after a stop is so many times as long as that took.
    pub const STOPS: u64 = 8;

    /// A policy whose first interval begins at `now` nanoseconds.
    #[must_use]
    pub const fn new(now: u64) -> Self {
        Self { last: now, interval: Self::LONGEST }
    }

    /// A forced stop happened, which has reset the log and took `cost` nanoseconds.
    pub fn stopped(&mut self, now: u64, cost: u64) {
        self.last = now;
        self.interval = cost.saturating_mul(Self::STOPS).clamp(Self::SHORTEST, Self::LONGEST);
    }

    /// Whether to reset the log at an exit at `now`. Counts the reset as done.
    pub fn due(&mut self, now: u64) -> bool {
        if now.saturating_sub(self.last) < self.interval {
            return false;
        }
        self.last = now;
        self.interval = (self.interval * 2).min(Self::LONGEST);
        true
    }
}

#[cfg(test)]
mod tests;
