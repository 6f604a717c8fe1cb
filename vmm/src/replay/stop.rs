//! Forced stops: the state that is shipped when the guest computes without an exit.
//!
//! The primary stops the guest anywhere and ships its registers and every page that the guest may have
//! written since the backup's last known state; the backup, halted at the last exit, loads them. The
//! page set is what KVM's dirty log has collected since its last reset, which lies at or before that
//! exit: a superset of what is needed. `ResetPolicy` keeps it small.

use rkyv::rancor::Error as RkyvError;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::machine::cpu::image::VcpuImage;
use crate::machine::memory::{GuestRam, MemoryError, PAGE_SIZE};
use crate::machine::vm::{Machine, MachineError};

/// What a forced stop ships.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct StopImage {
    /// The vCPU.
    pub vcpu: VcpuImage,
    /// Numbers of the pages that follow.
    pub pages: Vec<u64>,
    /// Their contents, one after the other.
    pub contents: Vec<u8>,
}

/// Largest unpacked image, in bytes: all of a machine's memory has to go through a state transfer
/// instead.
pub const IMAGE_LIMIT: usize = 256 << 20;

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

impl StopImage {
    /// Captures the machine, which stands between two instructions, with all pages dirtied since the
    /// last reset of the dirty log; resets the log.
    ///
    /// # Errors
    /// When KVM fails.
    pub fn capture(machine: &mut Machine) -> Result<Self, StopError> {
        let vcpu = machine.capture_vcpu()?;
        let pages = machine.take_dirty_pages()?;
        let mut contents = vec![0; pages.len() * PAGE_SIZE];
        for (number, page) in pages.iter().zip(contents.as_chunks_mut::<PAGE_SIZE>().0) {
            machine.ram().read_page(*number, page)?;
        }
        Ok(Self { vcpu, pages, contents })
    }

    /// Packs the image (rkyv, then LZ4 with its length in front).
    ///
    /// # Errors
    /// When it is larger than [`IMAGE_LIMIT`].
    pub fn pack(&self) -> Result<Vec<u8>, StopError> {
        let bytes = rkyv::to_bytes::<RkyvError>(self).map_err(|_| StopError::Damaged("not archivable"))?;
        if bytes.len() > IMAGE_LIMIT {
            return Err(StopError::Damaged("too many pages"));
        }
        Ok(lz4_flex::compress_prepend_size(&bytes))
    }

    /// Unpacks what [`StopImage::pack`] made.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn unpack(packed: &[u8]) -> Result<Self, StopError> {
        let claimed = packed.first_chunk::<4>().map_or(usize::MAX, |l| u32::from_le_bytes(*l) as usize);
        // No byte of LZ4 stands for more than 255: a damaged length does not cost memory.
        if claimed > IMAGE_LIMIT.min(packed.len().saturating_mul(255)) {
            return Err(StopError::Damaged("too large"));
        }
        let bytes = lz4_flex::decompress_size_prepended(packed).map_err(|_| StopError::Damaged("not LZ4"))?;
        Self::from_archive(&bytes)
    }

    /// Reads the archive of an image, at any alignment.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn from_archive(bytes: &[u8]) -> Result<Self, StopError> {
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        let image = rkyv::from_bytes::<Self, RkyvError>(&aligned)
            .map_err(|_| StopError::Damaged("not a valid archive"))?;
        if image.contents.len() != image.pages.len() * PAGE_SIZE {
            return Err(StopError::Damaged("pages and contents do not match"));
        }
        Ok(image)
    }

    /// Loads the image into a machine that stands at the exit before the stop.
    ///
    /// # Errors
    /// When a page lies outside memory or KVM refuses the registers.
    pub fn load(&self, machine: &mut Machine, counts: &mut StopCounts) -> Result<(), StopError> {
        self.load_pages(machine.ram(), counts)?;
        machine.load_vcpu(&self.vcpu)?;
        counts.stops += 1;
        Ok(())
    }

    /// The part of [`StopImage::load`] that concerns memory.
    ///
    /// # Errors
    /// When a page lies outside memory; those before it are loaded then.
    pub fn load_pages(&self, ram: &GuestRam, counts: &mut StopCounts) -> Result<(), StopError> {
        let mut old = [0; PAGE_SIZE];
        for (number, page) in self.pages.iter().zip(self.contents.as_chunks::<PAGE_SIZE>().0) {
            ram.read_page(*number, &mut old)?;
            if old == *page {
                counts.already_there += 1;
            } else {
                ram.write_page(*number, page)?;
            }
        }
        counts.pages += self.pages.len() as u64;
        counts.raw_bytes += self.contents.len() as u64;
        Ok(())
    }
}

/// When to reset the dirty log at an exit, so that a forced stop ships few pages that the backup has
/// already.
///
/// A reset write-protects guest memory again, and the first write to each page then costs a fault: too
/// many resets slow the guest, too few make the page set grow. Resets are frequent while forced stops
/// happen, and rare otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetPolicy {
    /// Host time of the last reset, in nanoseconds.
    last: u64,
    /// Interval between resets, in nanoseconds.
    interval: u64,
}

impl ResetPolicy {
    /// The interval right after a forced stop.
    pub const SHORTEST: u64 = 1_000_000;
    /// The interval of a guest that is never stopped.
    pub const LONGEST: u64 = 128_000_000;

    /// A policy whose first interval begins at `now` nanoseconds.
    #[must_use]
    pub const fn new(now: u64) -> Self {
        Self { last: now, interval: Self::LONGEST }
    }

    /// A forced stop happened, which has reset the log.
    pub const fn stopped(&mut self, now: u64) {
        self.last = now;
        self.interval = Self::SHORTEST;
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
mod tests {
    use super::*;

    #[test]
    fn resets_are_frequent_after_a_stop_and_become_rare() {
        let mut policy = ResetPolicy::new(0);
        assert!(!policy.due(ResetPolicy::LONGEST - 1));
        policy.stopped(0);
        let resets: Vec<u64> = (0..1000).map(|ms| ms * 1_000_000).filter(|now| policy.due(*now)).collect();
        assert_eq!(resets[..4], [1_000_000, 3_000_000, 7_000_000, 15_000_000]);
        assert!(resets.len() < 20);
    }

    #[test]
    fn images_survive_packing_and_damage_is_an_error() {
        let image = StopImage {
            vcpu: VcpuImage { regs: vec![1; 144], ..VcpuImage::default() },
            pages: vec![3, 9],
            contents: vec![7; 2 * PAGE_SIZE],
        };
        let packed = image.pack().unwrap();
        assert!(packed.len() < 400, "{}", packed.len());
        assert_eq!(StopImage::unpack(&packed).unwrap(), image);
        assert!(StopImage::unpack(&packed[..packed.len() - 1]).is_err());
        assert!(StopImage::unpack(&[0xff; 40]).is_err());
        let large = [&(IMAGE_LIMIT as u32).to_le_bytes(), &packed[4..]].concat();
        assert!(matches!(StopImage::unpack(&large), Err(StopError::Damaged("too large"))));
        assert!(StopImage::unpack(&[]).is_err());
        let odd = StopImage { pages: vec![1], ..StopImage::default() };
        assert!(StopImage::unpack(&odd.pack().unwrap()).is_err());
    }
}
