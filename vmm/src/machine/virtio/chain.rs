//! A descriptor chain that has been checked: every buffer lies in guest memory.

use vm_memory::VolatileSlice;

use super::fault::QueueError;
use crate::machine::memory::{GuestMemory, ram};

/// One buffer of a chain, in guest memory from its first byte to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Guest physical address.
    pub address: u64,
    /// Bytes, at least one.
    pub len: u32,
}

/// A chain taken from a queue: first the buffers that the device reads, then those it writes.
///
/// Made once per device with room for the longest chain and filled again and again, so that taking a
/// chain allocates nothing.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable_segments: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// An empty chain with room for `segments` buffers: the size of the largest queue it is used with.
    #[must_use]
    pub fn with_room_for(segments: u16) -> Self {
        Self {
            head: 0,
            segments: Vec::with_capacity(usize::from(segments)),
            readable_segments: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }

    /// Empties the chain, to be filled from descriptor `head` on.
    pub(super) fn start(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable_segments = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }

    /// Appends a buffer. The caller has checked the order, the range, and that all lengths together fit a `u32`.
    #[inline]
    pub(super) fn append(&mut self, segment: Segment, writable: bool) {
        self.segments.push(segment);
        if writable {
            self.writable_len += segment.len;
        } else {
            self.readable_segments += 1;
            self.readable_len += segment.len;
        }
    }

    /// Index of the chain's first descriptor: its name in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How many buffers there are.
    pub(super) const fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The buffers that the device may only read.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable_segments]
    }

    /// The buffers that the device may only write.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable_segments..]
    }

    /// Bytes in all readable buffers.
    #[must_use]
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in all writable buffers.
    #[must_use]
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Fills `buffer` from the readable bytes, starting `offset` bytes into them. How they are cut into
    /// buffers does not matter (virtio 1.3, section 2.7.4, "message framing").
    ///
    /// # Errors
    /// [`QueueError::ShortChain`] if there are not so many.
    pub fn gather(&self, mem: &GuestMemory, offset: u32, buffer: &mut [u8]) -> Result<(), QueueError> {
        let mut rest = buffer;
        for part in parts(self.readable(), offset, rest.len()) {
            let (now, later) = rest.split_at_mut(part.len as usize);
            in_ram(mem, part)?.copy_to(now);
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(QueueError::ShortChain { head: self.head }) }
    }

    /// The readable bytes where they are, to be read more than once. `only`: where the only buffer is, if there is but one and
    /// that is known.
    pub(super) fn readable_in<'a>(
        &'a self,
        mem: &'a GuestMemory,
        only: Option<VolatileSlice<'a>>,
    ) -> Readable<'a> {
        Readable { mem, chain: self, only: only.filter(|_| self.readable_segments > 0) }
    }

    /// Writes `data` into the writable bytes, starting `offset` bytes into them.
    ///
    /// # Errors
    /// [`QueueError::ShortChain`] if there is not so much room; nothing useful is written then.
    pub fn scatter(&self, mem: &GuestMemory, offset: u32, data: &[u8]) -> Result<(), QueueError> {
        if scatter(mem, self.writable(), offset, data)? {
            Ok(())
        } else {
            Err(QueueError::ShortChain { head: self.head })
        }
    }
}

/// The readable bytes of a chain.
#[derive(Debug)]
pub(super) struct Readable<'a> {
    mem: &'a GuestMemory,
    chain: &'a Chain,
    /// All of them, if they are known to lie together.
    only: Option<VolatileSlice<'a>>,
}

impl<'a> Readable<'a> {
    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.chain.readable_len as usize
    }

    /// As [`Chain::gather`].
    #[inline]
    pub(super) fn gather(&self, offset: u32, buffer: &mut [u8]) -> Result<(), QueueError> {
        let Some(only) = self.only else { return self.chain.gather(self.mem, offset, buffer) };
        let part = only.subslice(offset as usize, buffer.len());
        part.map_err(|_| QueueError::ShortChain { head: self.chain.head })?.copy_to(buffer);
        Ok(())
    }

    /// Where `len` of them lie, from `offset` on; fewer if there are not so many.
    pub(super) fn slices(&self, offset: u32, len: usize) -> impl Iterator<Item = VolatileSlice<'a>> {
        let mem = self.mem;
        parts(self.chain.readable(), offset, len).map_while(move |part| in_ram(mem, part).ok())
    }
}

/// Where a buffer is.
pub(super) fn in_ram(mem: &GuestMemory, segment: Segment) -> Result<VolatileSlice<'_>, QueueError> {
    ram(mem, segment.address, u64::from(segment.len)).ok_or(QueueError::outside_ram(segment))
}

/// Writes `data` into `segments`, starting `offset` bytes into them; false if they were too short.
pub(super) fn scatter(
    mem: &GuestMemory,
    segments: &[Segment],
    offset: u32,
    data: &[u8],
) -> Result<bool, QueueError> {
    let mut done = 0;
    for part in parts(segments, offset, data.len()) {
        let end = done + part.len as usize;
        in_ram(mem, part)?.copy_from(&data[done..end]);
        done = end;
    }
    Ok(done == data.len())
}

/// The parts of `segments` that hold `len` bytes from `offset` on; less than `len` in all if they are too short.
fn parts(segments: &[Segment], offset: u32, len: usize) -> impl Iterator<Item = Segment> {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len);
        skip -= skipped;
        let len = left.min((segment.len - skipped) as usize);
        left -= len;
        (len > 0).then(|| Segment { address: segment.address + u64::from(skipped), len: len as u32 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    proptest! {
        /// However a message is cut into buffers, scatter and gather see one run of bytes.
        #[test]
        fn framing_does_not_matter(
            cuts in proptest::collection::vec(1u32..40, 1..12),
            offset in 0u32..64,
            data in proptest::collection::vec(any::<u8>(), 0..256),
        ) {
            let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
            let mut writer = Chain::with_room_for(16);
            let mut reader = Chain::with_room_for(16);
            writer.start(0);
            reader.start(0);
            for (n, &len) in cuts.iter().enumerate() {
                let segment = Segment { address: n as u64 * 0x1000 + 7, len };
                writer.append(segment, true);
                reader.append(segment, false);
            }
            let room: u32 = cuts.iter().sum();
            prop_assert_eq!(writer.writable_len(), room);
            let fits = offset as usize + data.len() <= room as usize || data.is_empty();
            prop_assert_eq!(writer.scatter(&mem, offset, &data).is_ok(), fits);
            let mut back = vec![0; data.len()];
            prop_assert_eq!(reader.gather(&mem, offset, &mut back).is_ok(), fits);
            if fits {
                prop_assert_eq!(back, data);
            }
        }
    }
}
