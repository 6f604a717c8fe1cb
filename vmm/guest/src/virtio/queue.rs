//! A split virtqueue whose descriptor `i` always describes buffer `i` (virtio 1.2, section 2.7).

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// Entries of the rings; the device may allow fewer.
pub const MAX_SIZE: u16 = 256;

const ENTRIES: usize = MAX_SIZE as usize;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
const DEVICE_WRITES: u32 = 2;

#[repr(C)]
struct Descriptor {
    address: AtomicU64,
    len: AtomicU32,
    /// Flags in the low half; `next` in the high half is not used.
    flags: AtomicU32,
}

#[repr(C)]
struct Used {
    id: AtomicU32,
    len: AtomicU32,
}

/// The memory that driver and device share. All zero at the start.
///
/// The available and the used ring have their last field at a place that depends on the queue's size; it is
/// reached through the array in front of it, which therefore has more entries.
#[repr(C, align(4096))]
pub struct Rings {
    descriptors: [Descriptor; ENTRIES],
    avail_flags: AtomicU16,
    avail_index: AtomicU16,
    /// One entry more than needed, for the alignment of what follows.
    avail: [AtomicU16; ENTRIES + 2],
    used_flags: AtomicU16,
    used_index: AtomicU16,
    used: [Used; ENTRIES + 1],
}

/// Where the three parts of a queue are, in bytes from the start of [`Rings`].
pub const PARTS: [usize; 3] = [
    core::mem::offset_of!(Rings, descriptors),
    core::mem::offset_of!(Rings, avail_flags),
    core::mem::offset_of!(Rings, used_flags),
];

// Section 2.7: the used ring is aligned to 4 bytes.
const _: () = assert!(PARTS[2].is_multiple_of(4));

/// The driver's side of a queue. It trusts the device for nothing but the content of the frames.
pub struct Queue {
    rings: &'static Rings,
    size: u16,
    event_idx: bool,
    next: u16,
    published: u16,
    seen: u16,
}

impl Queue {
    /// A queue of `size` entries (a power of two up to [`MAX_SIZE`]) over zeroed memory. `event_idx`:
    /// VIRTIO_F_EVENT_IDX was negotiated.
    #[must_use]
    pub fn new(rings: &'static Rings, size: u16, event_idx: bool) -> Self {
        let mut queue = Self { rings, size, event_idx, next: 0, published: 0, seen: 0 };
        queue.disarm();
        queue
    }

    /// How many entries there are.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Says where a buffer is, and how long.
    pub fn describe(&mut self, buffer: u16, address: u64, len: u32, device_writes: bool) {
        let descriptor = &self.rings.descriptors[usize::from(buffer)];
        descriptor.address.store(address, Ordering::Relaxed);
        descriptor.len.store(len, Ordering::Relaxed);
        descriptor.flags.store(if device_writes { DEVICE_WRITES } else { 0 }, Ordering::Relaxed);
    }

    /// Changes how long a buffer is.
    pub fn set_len(&mut self, buffer: u16, len: u32) {
        self.rings.descriptors[usize::from(buffer)].len.store(len, Ordering::Relaxed);
    }

    /// Puts a buffer in the available ring. The device sees it after [`Self::publish`].
    pub fn offer(&mut self, buffer: u16) {
        self.rings.avail[usize::from(self.next % self.size)].store(buffer, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the device what was offered. Returns whether it wants to be notified of it (section 2.7.13).
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next {
            return false;
        }
        self.rings.avail_index.store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        let (old, new) = (self.published, self.next);
        self.published = new;
        if self.event_idx {
            let event = self.last_used_field().load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.rings.used_flags.load(Ordering::Relaxed) & NO_NOTIFY == 0
        }
    }

    /// The field behind the used ring: `avail_event`, written by the device.
    fn last_used_field(&self) -> &AtomicU16 {
        let field: *const AtomicU32 = &raw const self.rings.used[usize::from(self.size)].id;
        // SAFETY: `size` is at most ENTRIES and the array has one entry more; the low half of an aligned
        // 32-bit cell is an aligned 16-bit cell, and nobody uses the whole cell.
        unsafe { &*field.cast() }
    }

    /// Whether the device has used a buffer that was not taken yet.
    #[must_use]
    pub fn has_used(&self) -> bool {
        self.rings.used_index.load(Ordering::Acquire) != self.seen
    }

    /// The next used buffer and how many bytes the device wrote to it, without taking it. Entries that
    /// name no buffer are passed over.
    pub fn peek(&mut self) -> Option<(u16, u32)> {
        while self.has_used() {
            let used = &self.rings.used[usize::from(self.seen % self.size)];
            let (id, len) = (used.id.load(Ordering::Relaxed), used.len.load(Ordering::Relaxed));
            match u16::try_from(id) {
                Ok(id) if id < self.size => return Some((id, len)),
                _ => self.take(),
            }
        }
        None
    }

    /// Takes what [`Self::peek`] showed.
    pub fn take(&mut self) {
        self.seen = self.seen.wrapping_add(1);
    }

    /// Asks for an interrupt at the next used buffer. Afterwards [`Self::has_used`] must be looked at once
    /// more: the device may have used one just before (section 2.7.7).
    pub fn arm(&mut self) {
        if self.event_idx {
            self.rings.avail[usize::from(self.size)].store(self.seen, Ordering::Relaxed);
        } else {
            self.rings.avail_flags.store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        if self.event_idx {
            // As far away as possible: half the range of indices behind.
            let far = self.seen.wrapping_sub(1 << 15);
            self.rings.avail[usize::from(self.size)].store(far, Ordering::Relaxed);
        } else {
            self.rings.avail_flags.store(NO_INTERRUPT, Ordering::Relaxed);
        }
    }
}
