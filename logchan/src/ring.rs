//! A bounded ring of frames between two threads.
//!
//! One producer, one consumer, no lock. A frame lies contiguous and 16-byte aligned, so the consumer
//! reads archives where they lie. Each frame has a 16-byte mark in front of it with its length; where
//! the rest of the ring is too short for a frame, a mark says to skip it.
//!
//! Neither end waits. A consumer that finds nothing sleeps on a [`crate::doorbell::Doorbell`]. A
//! producer that finds no room calls [`Producer::announce_starving`], tries once more and only then
//! sleeps; the consumer learns from [`Consumer::release`] that it must wake the producer.

use std::fmt;
use thiserror::Error;

use crate::frame::ALIGN;
use crate::sync::{Arc, AtomicBool, AtomicUsize, CachePadded, Ordering, fence};

/// The bytes of a ring, and the marks between frames.
mod storage;

use storage::{MARK, SKIP, Storage};

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReserveError {
    /// Not now: the consumer must release frames first.
    #[error("the ring is full")]
    Full,
    /// Not ever: longer than [`Producer::max_frame`].
    #[error("{len} bytes can never fit this ring, at most {max}")]
    TooLong {
        /// Bytes asked for.
        len: usize,
        /// Longest frame the ring takes.
        max: usize,
    },
}

/// A ring of at least `capacity` bytes (rounded up to a power of two, at least 1 KiB); frames up to
/// half of that less 16 bytes fit.
///
/// # Panics
/// If the memory cannot be had.
#[must_use]
pub fn ring(capacity: usize) -> (Producer, Consumer) {
    ring_of(capacity.max(1024).next_power_of_two())
}

/// As [`ring`], of exactly `capacity` bytes, a power of two: tiny rings for model checking.
pub(crate) fn ring_of(capacity: usize) -> (Producer, Consumer) {
    let shared = Arc::new(Shared {
        tail: CachePadded(AtomicUsize::new(0)),
        head: CachePadded(AtomicUsize::new(0)),
        starving: CachePadded(AtomicBool::new(false)),
        closed: AtomicBool::new(false),
        storage: Storage::new(capacity),
    });
    let producer = Producer { shared: shared.clone(), tail: 0, known_head: 0, reserved: None };
    (producer, Consumer { shared, head: 0, known_tail: 0, front: None })
}

/// `tail` and `head` count bytes since the start and never wrap; modulo the capacity they are offsets.
struct Shared {
    tail: CachePadded<AtomicUsize>,
    head: CachePadded<AtomicUsize>,
    starving: CachePadded<AtomicBool>,
    closed: AtomicBool,
    storage: Storage,
}

#[derive(Clone, Copy)]
struct Reserved {
    /// Where the mark goes.
    start: usize,
    len: usize,
}

/// The end that puts frames in.
pub struct Producer {
    shared: Arc<Shared>,
    tail: usize,
    known_head: usize,
    reserved: Option<Reserved>,
}

impl Producer {
    /// Longest frame this ring takes, in bytes.
    #[must_use]
    pub fn max_frame(&self) -> usize {
        self.shared.storage.capacity / 2 - MARK
    }

    /// Reserves a slot of `len` bytes and returns it; its contents are undefined. A slot reserved
    /// before and not committed is given up.
    ///
    /// # Errors
    /// [`ReserveError::Full`] now, [`ReserveError::TooLong`] for ever.
    pub fn try_reserve(&mut self, len: usize) -> Result<&mut [u8], ReserveError> {
        self.reserved = None;
        if len > self.max_frame() {
            return Err(ReserveError::TooLong { len, max: self.max_frame() });
        }
        let capacity = self.shared.storage.capacity;
        let need = MARK + len.next_multiple_of(ALIGN);
        let to_end = capacity - self.tail % capacity;
        let skip = if need > to_end { to_end } else { 0 };
        if self.tail + skip + need - self.known_head > capacity {
            self.known_head = self.shared.head.0.load(Ordering::Acquire);
            if self.tail + skip + need - self.known_head > capacity {
                return Err(ReserveError::Full);
            }
        }
        if skip > 0 {
            self.shared.storage.write_mark(self.tail, SKIP);
        }
        self.reserved = Some(Reserved { start: self.tail + skip, len });
        Ok(self.slot())
    }

    /// The slot reserved last, empty if there is none: for filling it piece by piece.
    #[must_use]
    pub fn slot(&mut self) -> &mut [u8] {
        match self.reserved {
            // SAFETY: the bytes between tail and head + capacity belong to the producer, `try_reserve`
            // made sure that these lie in there, and `&mut self` makes this the only reference to them.
            Some(Reserved { start, len }) => unsafe { self.shared.storage.bytes_mut(start + MARK, len) },
            None => &mut [],
        }
    }

    /// Hands the reserved slot, cut to its first `len` bytes, to the consumer. Without a slot, or with
    /// a `len` longer than the slot, nothing happens and `false` comes back.
    pub fn commit(&mut self, len: usize) -> bool {
        let Some(reserved) = self.reserved.take().filter(|reserved| len <= reserved.len) else {
            return false;
        };
        self.shared.storage.write_mark(reserved.start, len as u32);
        self.tail = reserved.start + MARK + len.next_multiple_of(ALIGN);
        self.shared.tail.0.store(self.tail, Ordering::Release);
        true
    }

    /// Bytes in the ring, marks included, as far as this end knows: the consumer may have taken some.
    #[must_use]
    pub fn used(&self) -> usize {
        self.tail - self.shared.head.0.load(Ordering::Relaxed)
    }

    /// Says that the producer is about to sleep for want of room. Try once more after this; if that
    /// fails too, the next [`Consumer::release`] is sure to return `true`.
    pub fn announce_starving(&mut self) {
        self.shared.starving.0.store(true, Ordering::Relaxed);
        // Pairs with the fence in `release`: of the store here and the store of head there, at least
        // one is seen by the other side.
        fence(Ordering::SeqCst);
    }

    /// Says that no frame will follow. Dropping the producer says so too.
    pub fn close(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.close();
    }
}

/// The end that takes frames out.
pub struct Consumer {
    shared: Arc<Shared>,
    head: usize,
    known_tail: usize,
    front: Option<Reserved>,
}

impl Consumer {
    /// The oldest frame, if there is one. It stays the oldest until [`Self::release`].
    pub fn front(&mut self) -> Option<&[u8]> {
        if self.front.is_none() {
            self.front = self.find_front();
        }
        let Reserved { start, len } = self.front?;
        // SAFETY: the bytes between head and tail belong to the consumer until it moves head, which
        // needs `&mut self`; the producer's release store of tail made them visible.
        Some(unsafe { self.shared.storage.bytes(start + MARK, len) })
    }

    /// The frame that [`Self::front`] found last, if it was not released since.
    #[must_use]
    pub fn held(&self) -> Option<&[u8]> {
        let Reserved { start, len } = self.front?;
        // SAFETY: as in `front`; moving head needs `&mut self`.
        Some(unsafe { self.shared.storage.bytes(start + MARK, len) })
    }

    fn find_front(&mut self) -> Option<Reserved> {
        loop {
            if self.head == self.known_tail {
                self.known_tail = self.shared.tail.0.load(Ordering::Acquire);
                if self.head == self.known_tail {
                    return None;
                }
            }
            match self.shared.storage.read_mark(self.head) {
                SKIP => self.head = self.head.next_multiple_of(self.shared.storage.capacity),
                len => return Some(Reserved { start: self.head, len: len as usize }),
            }
        }
    }

    /// Gives the oldest frame's bytes back. `true` means that the producer announced that it sleeps
    /// for want of room: wake it.
    #[must_use = "a starving producer must be woken"]
    pub fn release(&mut self) -> bool {
        let Some(front) = self.front.take().or_else(|| self.find_front()) else { return false };
        self.shared.storage.reading(front.start + MARK, front.len);
        self.head = front.start + MARK + front.len.next_multiple_of(ALIGN);
        self.shared.head.0.store(self.head, Ordering::Release);
        fence(Ordering::SeqCst);
        self.shared.starving.0.load(Ordering::Relaxed) && {
            self.shared.starving.0.store(false, Ordering::Relaxed);
            true
        }
    }

    /// Whether the producer has closed the ring and everything was taken out.
    pub fn is_finished(&mut self) -> bool {
        // Closed first, empty second: a frame committed before the close is never missed.
        self.shared.closed.load(Ordering::Acquire) && self.front().is_none()
    }

    /// Bytes in the ring, marks included, as far as this end knows.
    #[must_use]
    pub fn used(&self) -> usize {
        self.shared.tail.0.load(Ordering::Relaxed) - self.head
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("used", &self.used()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("used", &self.used()).finish_non_exhaustive()
    }
}

/// A ring small enough for a model checker: `capacity` a power of two from 64.
#[cfg(loom)]
pub fn tiny_ring(capacity: usize) -> (Producer, Consumer) {
    ring_of(capacity)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn push(producer: &mut Producer, bytes: &[u8]) -> Result<(), ReserveError> {
        producer.try_reserve(bytes.len())?.copy_from_slice(bytes);
        assert!(producer.commit(bytes.len()));
        Ok(())
    }

    #[test]
    fn frames_come_out_as_they_went_in_aligned() {
        let (mut producer, mut consumer) = ring(1024);
        assert_eq!(consumer.front(), None);
        for round in 0..1000_usize {
            let frame = vec![round as u8; round % 300];
            push(&mut producer, &frame).unwrap();
            let front = consumer.front().unwrap();
            assert_eq!(front, frame);
            assert_eq!(front.as_ptr().addr() % ALIGN, 0);
            assert!(!consumer.release());
        }
        assert_eq!(consumer.front(), None);
    }

    #[test]
    fn the_longest_frame_fits_an_empty_ring_at_any_offset() {
        let (mut producer, mut consumer) = ring(1024);
        let longest = vec![7; producer.max_frame()];
        for filler in 0..64 {
            push(&mut producer, &vec![1; filler * 16]).unwrap();
            let _ = consumer.release();
            push(&mut producer, &longest).unwrap();
            assert_eq!(consumer.front(), Some(&longest[..]));
            let _ = consumer.release();
            if (filler + 1) * 16 > producer.max_frame() {
                break;
            }
        }
        let len = producer.max_frame() + 1;
        assert_eq!(producer.try_reserve(len), Err(ReserveError::TooLong { len, max: len - 1 }));
    }

    #[test]
    fn an_abandoned_or_shortened_slot_leaves_no_trace() {
        let (mut producer, mut consumer) = ring(1024);
        producer.try_reserve(100).unwrap().fill(1);
        producer.try_reserve(50).unwrap().fill(2);
        assert!(!producer.commit(51), "longer than the slot");
        producer.try_reserve(50).unwrap().fill(3);
        assert!(producer.commit(10));
        assert!(!producer.commit(10), "committed once");
        assert_eq!(consumer.front(), Some(&[3_u8; 10][..]));
        assert!(!consumer.release());
        assert_eq!(consumer.front(), None);
        assert_eq!(producer.used(), 0);
    }

    #[test]
    fn a_starving_producer_is_announced_once() {
        let (mut producer, mut consumer) = ring(1024);
        while push(&mut producer, &[0; 100]).is_ok() {}
        producer.announce_starving();
        assert_eq!(push(&mut producer, &[0; 100]), Err(ReserveError::Full));
        let _ = consumer.front();
        assert!(consumer.release());
        assert!(!consumer.release());
    }

    #[test]
    fn a_closed_ring_is_drained_before_it_is_finished() {
        let (mut producer, mut consumer) = ring(1024);
        push(&mut producer, b"last").unwrap();
        assert!(!consumer.is_finished());
        drop(producer);
        assert!(!consumer.is_finished());
        assert_eq!(consumer.front(), Some(&b"last"[..]));
        let _ = consumer.release();
        assert!(consumer.is_finished());
    }

    #[test]
    fn two_threads_lose_nothing() {
        let (mut producer, mut consumer) = ring(4096);
        let writer = std::thread::spawn(move || {
            for n in 0..100_000_u64 {
                let len = 8 + (n % 700) as usize;
                loop {
                    match producer.try_reserve(len) {
                        Ok(slot) => {
                            slot.fill(n as u8);
                            slot[..8].copy_from_slice(&n.to_le_bytes());
                            break;
                        }
                        Err(_) => std::thread::yield_now(),
                    }
                }
                assert!(producer.commit(len));
            }
        });
        let mut expected = 0_u64;
        while !consumer.is_finished() {
            let Some(frame) = consumer.front() else {
                std::thread::yield_now();
                continue;
            };
            assert_eq!(frame.len(), 8 + (expected % 700) as usize);
            assert_eq!(frame[..8], expected.to_le_bytes());
            assert!(frame[8..].iter().all(|&b| b == expected as u8));
            expected += 1;
            let _ = consumer.release();
        }
        assert_eq!(expected, 100_000);
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_queue(steps in proptest::collection::vec((any::<bool>(), 0usize..500), 0..300)) {
            let (mut producer, mut consumer) = ring(1024);
            let mut model = VecDeque::new();
            for (n, (put, len)) in steps.into_iter().enumerate() {
                if put {
                    let frame = vec![n as u8; len];
                    match push(&mut producer, &frame) {
                        Ok(()) => model.push_back(frame),
                        Err(ReserveError::Full) => prop_assert!(!model.is_empty(), "an empty ring takes it"),
                        Err(error) => prop_assert!(len > 496, "{error}"),
                    }
                } else {
                    prop_assert_eq!(consumer.front().map(<[u8]>::to_vec), model.front().cloned());
                    let _ = consumer.release();
                    model.pop_front();
                }
            }
        }
    }
}
