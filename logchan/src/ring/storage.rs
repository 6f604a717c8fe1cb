//! The bytes of a ring, and the marks between frames.
//!
//! Positions count bytes since the ring's start; modulo the capacity they are offsets. Who may touch which
//! bytes when is settled by head and tail, outside.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;

use crate::frame::ALIGN;

/// Bytes of the mark in front of each frame.
pub(super) const MARK: usize = ALIGN;
/// The length in a mark that says: nothing here, go on at the ring's start.
pub(super) const SKIP: u32 = u32::MAX;

/// The bytes. Under loom each 16-byte block has a cell beside it whose accesses loom checks.
pub(super) struct Storage {
    base: NonNull<u8>,
    /// In bytes, a power of two.
    pub(super) capacity: usize,
    #[cfg(loom)]
    watched: Vec<loom::cell::UnsafeCell<()>>,
}

// SAFETY: plain memory; who may touch which byte when is settled by head and tail.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Storage {
    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two() && capacity >= 2 * (MARK + ALIGN));
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self {
            base,
            capacity,
            #[cfg(loom)]
            watched: (0..capacity / ALIGN).map(|_| loom::cell::UnsafeCell::new(())).collect(),
        }
    }

    fn layout(capacity: usize) -> Layout {
        // No more than malloc's own alignment: so the zeroed pages come from the kernel as they are touched,
        // and a large ring costs nothing until it is used.
        Layout::from_size_align(capacity, ALIGN).unwrap_or(Layout::new::<[u128; 2]>())
    }

    fn range(&self, position: usize, len: usize) -> Range<usize> {
        let offset = position % self.capacity;
        assert!(len <= self.capacity - offset, "a frame lies contiguous in the ring");
        offset..offset + len
    }

    /// # Safety
    /// The bytes belong to the caller until it gives them away through `tail`.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes_mut(&self, position: usize, len: usize) -> &mut [u8] {
        let range = self.range(position, len);
        self.writing(position, len);
        // SAFETY: in bounds by `range`, initialised by `alloc_zeroed`, exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(range.start), len) }
    }

    /// # Safety
    /// The bytes belong to the caller until it gives them away through `head`.
    pub(super) unsafe fn bytes(&self, position: usize, len: usize) -> &[u8] {
        let range = self.range(position, len);
        self.reading(position, len);
        // SAFETY: in bounds by `range`, initialised by `alloc_zeroed`, unchanged by the caller's word.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(range.start), len) }
    }

    /// Called by the producer only, for a mark in its own part.
    pub(super) fn write_mark(&self, position: usize, len: u32) {
        // SAFETY: a mark lies between tail and head + capacity, the producer's part.
        let mark = unsafe { self.bytes_mut(position, MARK) };
        mark[..4].copy_from_slice(&len.to_le_bytes());
        // The frame behind the mark is complete by now: under loom, look at it once more.
        if len != SKIP {
            self.writing(position + MARK, len as usize);
        }
    }

    /// Called by the consumer only, for a mark between head and tail.
    pub(super) fn read_mark(&self, position: usize) -> u32 {
        // SAFETY: a mark between head and tail, the consumer's part.
        let mark = unsafe { self.bytes(position, MARK) };
        u32::from_le_bytes([mark[0], mark[1], mark[2], mark[3]])
    }

    #[cfg(not(loom))]
    #[inline]
    fn writing(&self, _position: usize, _len: usize) {}

    #[cfg(not(loom))]
    #[inline]
    pub(super) fn reading(&self, _position: usize, _len: usize) {}

    #[cfg(loom)]
    fn writing(&self, position: usize, len: usize) {
        for cell in &self.watched[self.blocks(position, len)] {
            cell.with_mut(|_| ());
        }
    }

    #[cfg(loom)]
    pub(super) fn reading(&self, position: usize, len: usize) {
        for cell in &self.watched[self.blocks(position, len)] {
            cell.with(|_| ());
        }
    }

    #[cfg(loom)]
    fn blocks(&self, position: usize, len: usize) -> Range<usize> {
        let range = self.range(position, len);
        range.start / ALIGN..range.end.div_ceil(ALIGN)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) };
    }
}
