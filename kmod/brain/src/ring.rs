// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//! A bounded ring of captured values between the module and the VMM: one producer, one consumer, no lock.
//!
//! It lies in memory that both map, so neither end believes the other: each keeps its own index to itself and
//! only reads the peer's, and a peer's index that cannot be is an error. An entry is two atomic words, so that
//! a peer that scribbles can spoil values and nothing else.

use super::sync::{AtomicU32, AtomicU64, Ordering};
use super::trap::Trap;

/// One captured value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The instruction.
    pub trap: Trap,
    /// What it read.
    pub value: u64,
    /// Its ordinal among the captured instructions of this vCPU, from 0; the upper 8 bits are dropped.
    pub ordinal: u64,
}

/// An entry as it lies in shared memory.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Slot {
    value: AtomicU64,
    /// Number of the trap, and above it the ordinal.
    tag: AtomicU64,
}

impl Slot {
    fn store(&self, entry: &Entry) {
        self.value.store(entry.value, Ordering::Relaxed);
        self.tag.store(u64::from(entry.trap.number()) | entry.ordinal << 8, Ordering::Relaxed);
    }

    fn load(&self) -> Option<Entry> {
        let tag = self.tag.load(Ordering::Relaxed);
        let trap = Trap::of(tag as u8)?;
        Some(Entry { trap, value: self.value.load(Ordering::Relaxed), ordinal: tag >> 8 })
    }
}

/// Where a ring lies.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    /// Entries ever put in, modulo 2^32. Written by the producer.
    pub tail: &'a AtomicU32,
    /// Entries ever taken out, modulo 2^32. Written by the consumer.
    pub head: &'a AtomicU32,
    /// The entries: a power of two of them, at most 2^31.
    pub slots: &'a [Slot],
}

/// Why a ring could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// No room (producer) or nothing there (consumer): try again later.
    Wait,
    /// The peer's index or entry cannot be: the memory was scribbled on.
    Corrupt,
}

impl Ring<'_> {
    fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize & self.slots.len().wrapping_sub(1))
    }

    fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }
}

/// The end that puts entries in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Producer {
    tail: u32,
}

impl Producer {
    /// A producer of an empty ring whose indexes are zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { tail: 0 }
    }

    /// Appends an entry.
    ///
    /// # Errors
    /// When the ring is full, or the consumer's index cannot be.
    pub fn push(&mut self, ring: &Ring<'_>, entry: &Entry) -> Result<(), RingError> {
        // Acquire: the consumer has read the slot before it gave it back.
        let used = self.tail.wrapping_sub(ring.head.load(Ordering::Acquire));
        if used >= ring.capacity() {
            return Err(if used == ring.capacity() { RingError::Wait } else { RingError::Corrupt });
        }
        ring.slot(self.tail).ok_or(RingError::Corrupt)?.store(entry);
        self.tail = self.tail.wrapping_add(1);
        // Release: the entry is whole before it is announced.
        ring.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Entries that fit right now; zero if the consumer's index cannot be.
    #[must_use]
    pub fn room(&self, ring: &Ring<'_>) -> u32 {
        ring.capacity().saturating_sub(self.tail.wrapping_sub(ring.head.load(Ordering::Acquire)))
    }
}

/// The end that takes entries out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumer {
    head: u32,
}

impl Consumer {
    /// A consumer of an empty ring whose indexes are zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { head: 0 }
    }

    /// The oldest entry, without taking it.
    ///
    /// # Errors
    /// When there is none, or the producer's index or the entry cannot be.
    pub fn front(&self, ring: &Ring<'_>) -> Result<Entry, RingError> {
        let used = ring.tail.load(Ordering::Acquire).wrapping_sub(self.head);
        if used == 0 {
            return Err(RingError::Wait);
        }
        if used > ring.capacity() {
            return Err(RingError::Corrupt);
        }
        ring.slot(self.head).and_then(Slot::load).ok_or(RingError::Corrupt)
    }

    /// Gives the oldest entry's slot back. Only after [`Consumer::front`] has shown one.
    pub fn release(&mut self, ring: &Ring<'_>) {
        self.head = self.head.wrapping_add(1);
        ring.head.store(self.head, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn entry(n: u64) -> Entry {
        Entry { trap: Trap::ALL[(n % 3) as usize], value: n.wrapping_mul(0x1234_5678_9abc), ordinal: n }
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_queue_also_where_the_indexes_wrap(
            steps in proptest::collection::vec(any::<bool>(), 0..200), start: u32,
        ) {
            let (tail, head) = (AtomicU32::new(start), AtomicU32::new(start));
            let slots: Vec<Slot> = (0..8).map(|_| Slot::default()).collect();
            let ring = Ring { tail: &tail, head: &head, slots: &slots };
            let (mut producer, mut consumer) = (Producer { tail: start }, Consumer { head: start });
            let mut model = VecDeque::new();
            for (n, put) in steps.into_iter().enumerate() {
                let e = entry(n as u64);
                if put {
                    prop_assert_eq!(producer.room(&ring) as usize, 8 - model.len());
                    match producer.push(&ring, &e) {
                        Ok(()) => model.push_back(e),
                        Err(error) => prop_assert_eq!((error, model.len()), (RingError::Wait, 8)),
                    }
                } else {
                    prop_assert_eq!(consumer.front(&ring).ok(), model.pop_front());
                    if consumer.front(&ring).is_ok() { consumer.release(&ring); }
                }
            }
        }

        #[test]
        fn a_scribbling_peer_gets_an_error_and_never_a_panic(
            tail: u32, head: u32, mine: u32, value: u64, tag: u64, slots in 0usize..4,
        ) {
            let slots: Vec<Slot> = (0..(1 << slots) & !1)
                .map(|_| Slot { value: AtomicU64::new(value), tag: AtomicU64::new(tag) }).collect();
            let (tail, head) = (AtomicU32::new(tail), AtomicU32::new(head));
            let ring = Ring { tail: &tail, head: &head, slots: &slots };
            let _ = Producer { tail: mine }.push(&ring, &entry(1));
            let _ = Consumer { head: mine }.front(&ring);
        }
    }
}
