//! A packet that the guest sends, where the guest has it: whoever lets it out, or keeps it, takes it from there.

use super::offload::HEADER_LEN;
use crate::machine::virtio::chain::Readable;

/// A header of [`HEADER_LEN`] bytes that says what is left to the host, and an Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    header: [u8; HEADER_LEN],
    frame: Frame<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Frame<'a> {
    /// The readable bytes of a chain from an offset on; so many.
    Guest {
        bytes: &'a Readable<'a>,
        offset: u32,
        len: usize,
    },
    Bytes(&'a [u8]),
}

/// Bytes of a packet that lie together, at least one.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where they are, as long as the packet is there.
    pub start: *const u8,
    /// How many.
    pub len: usize,
}

impl<'a> Packet<'a> {
    /// Parts of a packet at most, the header among them, beside those that its chain has.
    pub const MORE_PARTS: usize = 1;

    /// A packet with its frame in guest memory: `len` of a chain's readable `bytes`, from `offset` on. `None`: there are
    /// not so many.
    #[must_use]
    pub(super) fn in_memory(
        header: [u8; HEADER_LEN],
        bytes: &'a Readable<'a>,
        offset: u32,
        len: usize,
    ) -> Option<Self> {
        let there = bytes.len().saturating_sub(offset as usize);
        (len <= there).then_some(Self { header, frame: Frame::Guest { bytes, offset, len } })
    }

    /// A packet that lies in one piece. `None`: it has no whole header.
    #[must_use]
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (header, frame) = bytes.split_first_chunk()?;
        Some(Self { header: *header, frame: Frame::Bytes(frame) })
    }

    /// Its bytes, header and frame.
    #[must_use]
    pub const fn len(&self) -> usize {
        HEADER_LEN
            + match self.frame {
                Frame::Guest { len, .. } => len,
                Frame::Bytes(bytes) => bytes.len(),
            }
    }

    /// Never: there is a header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Copies it to the beginning of `to`.
    ///
    /// # Panics
    /// If `to` is shorter than [`Packet::len`].
    pub fn copy_to(&self, to: &mut [u8]) {
        let (header, frame) = to[..self.len()].split_at_mut(HEADER_LEN);
        header.copy_from_slice(&self.header);
        match self.frame {
            Frame::Guest { bytes, offset, len } => {
                let copied = bytes.gather(offset, frame);
                debug_assert!(copied.is_ok(), "{len} bytes were there: {copied:?}");
            }
            Frame::Bytes(bytes) => frame.copy_from_slice(bytes),
        }
    }

    /// A copy of it.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(&mut bytes);
        bytes
    }

    /// Shows `visit` where its bytes lie, in order.
    pub fn for_each_part(&self, mut visit: impl FnMut(Part)) {
        visit(Part { start: self.header.as_ptr(), len: HEADER_LEN });
        match self.frame {
            Frame::Guest { bytes, offset, len } => {
                for slice in bytes.slices(offset, len) {
                    visit(Part { start: slice.ptr_guard().as_ptr(), len: slice.len() });
                }
            }
            Frame::Bytes([]) => {}
            Frame::Bytes(bytes) => visit(Part { start: bytes.as_ptr(), len: bytes.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::GuestMemory;
    use crate::machine::virtio::chain::{Chain, Segment, in_ram};
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    fn gathered(packet: &Packet<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        // SAFETY: the parts are there as long as the packet is.
        packet
            .for_each_part(|part| bytes.extend(unsafe { std::slice::from_raw_parts(part.start, part.len) }));
        bytes
    }

    proptest! {
        #[test]
        fn a_packet_is_the_same_in_one_piece_and_in_many(
            cuts in proptest::collection::vec(1u32..40, 1..12), offset in 0u32..64, len in 0usize..400
        ) {
            let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
            let mut chain = Chain::with_room_for(16);
            chain.start(0);
            let mut bytes = Vec::new();
            for (n, &len) in cuts.iter().enumerate() {
                let address = n as u64 * 0x1000 + 7;
                let part: Vec<u8> = (0..len).map(|byte| (byte + 31 * n as u32) as u8).collect();
                mem.write_slice(&part, GuestAddress(address)).unwrap();
                chain.append(Segment { address, len }, false);
                bytes.extend(part);
            }
            let header = [9; HEADER_LEN];
            let only = (cuts.len() == 1).then(|| in_ram(&mem, chain.readable()[0]).unwrap());
            let readable = chain.readable_in(&mem, only);
            let packet = Packet::in_memory(header, &readable, offset, len);
            let frame = bytes.get(offset as usize..).and_then(|rest| rest.get(..len));
            prop_assert_eq!(packet.is_some(), frame.is_some() || len == 0);
            if let (Some(packet), Some(frame)) = (packet, frame) {
                let whole = [&header[..], frame].concat();
                prop_assert_eq!(packet.len(), whole.len());
                prop_assert_eq!(&packet.to_vec(), &whole);
                prop_assert_eq!(&gathered(&packet), &whole);
                let again = Packet::from_bytes(&whole).unwrap();
                prop_assert_eq!(&gathered(&again), &whole);
                prop_assert_eq!(&again.to_vec(), &whole);
            }
        }
    }
}
