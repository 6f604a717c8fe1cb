//! A bounded buffer that is written and read in contiguous pieces: the memory a stream is sent from.
//!
//! At most two runs of bytes: the older one, and behind a wrap a younger one at the start of the
//! memory. Bytes never move, so the kernel may read them while new ones are added. Three steps:
//! committed, submitted (handed to the kernel), released (the kernel needs them no more).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::frame::ALIGN;

/// Memory of a fixed size that never moves, aligned to [`ALIGN`].
#[derive(Debug)]
pub(crate) struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Memory {}
// SAFETY: shared references only read.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(4096);
        let layout = Self::layout(len);
        // SAFETY: the size is not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { base, len }
    }

    fn layout(len: usize) -> Layout {
        // No more than malloc's own alignment: so the zeroed pages come from the kernel as they are touched,
        // and a large buffer costs nothing until it is used.
        Layout::from_size_align(len, ALIGN).unwrap_or(Layout::new::<[u128; 2]>())
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Where `offset` is, for the kernel. The pointer stays valid as long as `self` is not dropped.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len);
        // SAFETY: within the allocation, or one past its end.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Bytes the kernel does not write at present.
    pub(crate) fn slice(&self, start: usize, end: usize) -> &[u8] {
        assert!(start <= end && end <= self.len);
        // SAFETY: in bounds and initialised by `alloc_zeroed`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(start), end - start) }
    }

    /// Bytes the kernel does not use at present.
    pub(crate) fn slice_mut(&mut self, start: usize, end: usize) -> &mut [u8] {
        assert!(start <= end && end <= self.len);
        // SAFETY: in bounds, initialised, and exclusive by `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(start), end - start) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) };
    }
}

/// The buffer.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    memory: Memory,
    /// Oldest byte not released.
    released: usize,
    /// First byte not submitted; in the younger run if `submitted_wrapped`.
    submitted: usize,
    submitted_wrapped: bool,
    /// End of the older run.
    end: usize,
    /// End of the younger run, which starts at 0; zero if there is none.
    wrapped_end: usize,
}

impl SendBuffer {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            memory: Memory::new(capacity),
            released: 0,
            submitted: 0,
            submitted_wrapped: false,
            end: 0,
            wrapped_end: 0,
        }
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Bytes committed and not released.
    pub(crate) const fn queued(&self) -> usize {
        self.end - self.released + self.wrapped_end
    }

    /// Where the next commit goes: behind the younger run, or behind the older, or, if there is more
    /// space before it, at the start of the memory.
    fn room_range(&self) -> (usize, usize) {
        let (behind, before) = (self.memory.len() - self.end, self.released);
        if self.wrapped_end > 0 || before > behind {
            (self.wrapped_end, self.released)
        } else {
            (self.end, self.memory.len())
        }
    }

    pub(crate) fn room(&mut self) -> &mut [u8] {
        let (start, end) = self.room_range();
        self.memory.slice_mut(start, end)
    }

    pub(crate) fn commit(&mut self, len: usize) {
        let (start, end) = self.room_range();
        assert!(len <= end - start, "more committed than there was room");
        if len == 0 {
        } else if self.wrapped_end > 0 || start < self.end {
            self.wrapped_end = start + len;
        } else {
            self.end = start + len;
        }
    }

    /// The next contiguous run that was committed and not submitted; submitted from now on.
    pub(crate) fn submit(&mut self) -> Option<(*const u8, usize)> {
        if !self.submitted_wrapped && self.submitted == self.end && self.wrapped_end > 0 {
            self.submitted_wrapped = true;
            self.submitted = 0;
        }
        let end = if self.submitted_wrapped { self.wrapped_end } else { self.end };
        let (start, len) = (self.submitted, end - self.submitted);
        self.submitted = end;
        (len > 0).then(|| (self.memory.at(start).cast_const(), len))
    }

    /// Where the oldest byte not released is.
    pub(crate) fn oldest(&self) -> *const u8 {
        self.memory.at(self.released).cast_const()
    }

    /// The oldest submitted bytes are needed no more.
    pub(crate) fn release(&mut self, len: usize) {
        self.released += len;
        assert!(self.released <= self.end, "released within one run");
        if self.released < self.end {
            return;
        }
        if self.wrapped_end > 0 {
            // The younger run becomes the older one.
            self.released = 0;
            self.end = self.wrapped_end;
            self.wrapped_end = 0;
            if !self.submitted_wrapped {
                self.submitted = 0;
            }
            self.submitted_wrapped = false;
        } else {
            // Empty: start over, touching no more memory than needed.
            self.released = 0;
            self.submitted = 0;
            self.end = 0;
        }
    }

    /// All of the memory, to register it with the kernel.
    pub(crate) const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where the memory is, and how much: to register it with a device.
    #[cfg(feature = "rdma")]
    pub(crate) fn range(&self) -> (*mut u8, usize) {
        (self.memory.at(0), self.memory.len())
    }

    /// The oldest submitted bytes are needed no more, across the end of the older run.
    #[cfg(feature = "rdma")]
    pub(crate) fn release_all(&mut self, mut len: usize) {
        while len > 0 {
            let step = len.min(self.end - self.released);
            self.release(step);
            len -= step;
        }
    }

    /// Bytes not submitted yet, as slices in order.
    pub(crate) fn unsubmitted(&self) -> (&[u8], &[u8]) {
        if self.submitted_wrapped {
            (self.memory.slice(self.submitted, self.wrapped_end), &[])
        } else {
            (self.memory.slice(self.submitted, self.end), self.memory.slice(0, self.wrapped_end))
        }
    }

    /// Forgets the bytes given out by [`Self::unsubmitted`]: `len` of them were dealt with on the spot.
    pub(crate) fn done(&mut self, mut len: usize) {
        while len > 0 {
            let run = self.end - self.released;
            let step = len.min(run);
            if !self.submitted_wrapped {
                self.submitted += step;
            }
            self.release(step);
            len -= step;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Against a plain queue: what is released is what was committed, in order, and the submitted
        /// bytes stay unchanged until then.
        #[test]
        fn it_is_a_stream(steps in proptest::collection::vec((0u8..3, 1usize..5000), 1..200)) {
            let mut buffer = SendBuffer::new(8192);
            let mut written = VecDeque::new();
            let mut in_flight: VecDeque<(*const u8, usize)> = VecDeque::new();
            let mut next = 0_u8;
            for (step, len) in steps {
                match step {
                    0 => {
                        let room = buffer.room();
                        let len = len.min(room.len());
                        for byte in &mut room[..len] {
                            *byte = next;
                            written.push_back(next);
                            next = next.wrapping_add(1);
                        }
                        buffer.commit(len);
                    }
                    1 => in_flight.extend(buffer.submit()),
                    _ => if let Some((start, len)) = in_flight.pop_front() {
                        // SAFETY: submitted, not released.
                        let bytes = unsafe { std::slice::from_raw_parts(start, len) };
                        let expected: Vec<u8> = written.drain(..len).collect();
                        prop_assert_eq!(bytes, &expected[..]);
                        buffer.release(len);
                    }
                }
                prop_assert_eq!(buffer.queued(), written.len());
            }
        }

        #[test]
        fn bytes_dealt_with_on_the_spot_are_in_order_too(steps in proptest::collection::vec((any::<bool>(), 1usize..6000), 1..200)) {
            let mut buffer = SendBuffer::new(8192);
            let (mut next, mut due) = (0_u8, 0_u8);
            for (put, len) in steps {
                if put {
                    let room = buffer.room();
                    let len = len.min(room.len());
                    for byte in &mut room[..len] {
                        *byte = next;
                        next = next.wrapping_add(1);
                    }
                    buffer.commit(len);
                } else {
                    let (first, second) = buffer.unsubmitted();
                    let taken: Vec<u8> = first.iter().chain(second).copied().take(len).collect();
                    for byte in &taken {
                        prop_assert_eq!(*byte, due);
                        due = due.wrapping_add(1);
                    }
                    buffer.done(taken.len());
                }
            }
        }
    }

    #[test]
    fn an_empty_buffer_offers_all_of_its_memory() {
        let mut buffer = SendBuffer::new(8192);
        buffer.commit(8000);
        assert_eq!(buffer.room().len(), 192);
        let (_, len) = buffer.submit().unwrap();
        buffer.release(len);
        assert_eq!(buffer.room().len(), 8192);
    }
}
