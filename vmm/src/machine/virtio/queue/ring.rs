//! The three parts of a split virtqueue in guest memory (virtio 1.3, sections 2.7.5, 2.7.6 and 2.7.8).
//!
//! All are looked up in memory once for all that is done with them in one go: a packet of 64 KiB takes some forty buffers, fifty
//! clients are answered at one exit, and a search of memory for each word of the rings takes longer than to copy a packet.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

use super::QueueError;
use crate::machine::memory::{GuestMemory, ram};

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_SIZE: u64 = 16;

/// Bytes of an entry of the used ring: head and length.
const USED_SIZE: u64 = 8;

/// Offset of the index in the available and the used ring; before it lie the flags.
const INDEX: usize = 2;

/// Offset of the first entry of the available and the used ring.
const RING_HEADER: u64 = 4;

/// A queue's parts, and the memory that they are in.
#[derive(Clone, Copy, Debug)]
pub struct Rings<'a> {
    pub(super) mem: &'a GuestMemory,
    pub(super) table: Table<'a>,
    pub(super) available: AvailableRing<'a>,
    pub(super) used: UsedRing<'a>,
}

/// A descriptor table: that of a queue, or an indirect one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    slice: VolatileSlice<'a>,
    /// Its descriptors.
    pub(super) len: u32,
}

impl<'a> Table<'a> {
    /// `None`: not all of it is guest memory.
    pub(super) fn at(mem: &'a GuestMemory, address: u64, len: u32) -> Option<Self> {
        Some(Self { slice: ram(mem, address, u64::from(len) * DESCRIPTOR_SIZE)?, len })
    }

    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= self.len {
            return Err(QueueError::DescriptorIndex { index, table_len: self.len });
        }
        let descriptor = self.slice.get_ref(usize::from(index) * DESCRIPTOR_SIZE as usize);
        descriptor.map(|descriptor| descriptor.load()).map_err(|_| QueueError::Inaccessible)
    }
}

/// The driver's ring: flags, index, heads of chains, and the used index at which it wants an interrupt.
#[derive(Clone, Copy, Debug)]
pub(super) struct AvailableRing<'a> {
    slice: VolatileSlice<'a>,
    size: u16,
}

impl<'a> AvailableRing<'a> {
    pub(super) const fn bytes(size: u16) -> u64 {
        RING_HEADER + 2 * size as u64 + 2
    }

    /// The ring of a queue with `size` entries, a power of two. `None`: not all of it is guest memory.
    pub(super) fn at(mem: &'a GuestMemory, address: u64, size: u16) -> Option<Self> {
        Some(Self { slice: ram(mem, address, Self::bytes(size))?, size })
    }

    pub(super) fn flags(&self) -> Result<u16, QueueError> {
        load(&self.slice, 0, Ordering::Relaxed)
    }

    pub(super) fn index(&self) -> Result<u16, QueueError> {
        load(&self.slice, INDEX, Ordering::Acquire)
    }

    /// The head at index `n` of all that were ever made available.
    pub(super) fn head(&self, n: u16) -> Result<u16, QueueError> {
        let entry = RING_HEADER as usize + 2 * usize::from(n & (self.size - 1));
        let head = self.slice.get_ref(entry).map_err(|_| QueueError::Inaccessible)?;
        Ok(u16::from_le(head.load()))
    }

    /// The used index at which the driver wants an interrupt.
    pub(super) fn used_event(&self) -> Result<u16, QueueError> {
        load(&self.slice, RING_HEADER as usize + 2 * usize::from(self.size), Ordering::Relaxed)
    }
}

/// The device's ring: flags, index, chains that are given back, and the available index at which it wants a
/// notification.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsedRing<'a> {
    slice: VolatileSlice<'a>,
    size: u16,
}

impl<'a> UsedRing<'a> {
    pub(super) const fn bytes(size: u16) -> u64 {
        RING_HEADER + USED_SIZE * size as u64 + 2
    }

    /// As [`AvailableRing::at`].
    pub(super) fn at(mem: &'a GuestMemory, address: u64, size: u16) -> Option<Self> {
        Some(Self { slice: ram(mem, address, Self::bytes(size))?, size })
    }

    /// Puts the chain at `head` at index `n` of all that were ever given back, with `len` bytes written. The driver looks for it
    /// once the index is beyond it.
    pub(super) fn put(&self, n: u16, head: u16, len: u32) -> Result<(), QueueError> {
        let entry = RING_HEADER as usize + USED_SIZE as usize * usize::from(n & (self.size - 1));
        let words = u64::from(head) | u64::from(len) << 32;
        let place = self.slice.get_ref::<u64>(entry).map_err(|_| QueueError::Inaccessible)?;
        place.store(words.to_le());
        Ok(())
    }

    /// The index: so many chains were ever given back.
    pub(super) fn set_index(&self, index: u16) -> Result<(), QueueError> {
        store(&self.slice, index.to_le(), INDEX, Ordering::Release)
    }

    pub(super) fn set_flags(&self, flags: u16) -> Result<(), QueueError> {
        store(&self.slice, flags.to_le(), 0, Ordering::Relaxed)
    }

    /// Asks for a notification when the available index passes this one.
    pub(super) fn set_available_event(&self, index: u16) -> Result<(), QueueError> {
        let at = RING_HEADER as usize + USED_SIZE as usize * usize::from(self.size);
        store(&self.slice, index.to_le(), at, Ordering::Relaxed)
    }
}

fn load(slice: &VolatileSlice<'_>, offset: usize, order: Ordering) -> Result<u16, QueueError> {
    slice.load(offset, order).map(u16::from_le).map_err(|_| QueueError::Inaccessible)
}

fn store<T: vm_memory::AtomicAccess>(
    slice: &VolatileSlice<'_>,
    value: T,
    offset: usize,
    order: Ordering,
) -> Result<(), QueueError> {
    slice.store(value, offset, order).map_err(|_| QueueError::Inaccessible)
}
