//! The fixed header around every payload, and its checks.
//!
//! All integers are little-endian. A frame starts at an address that is a multiple of [`ALIGN`], its
//! payload too, and its length is padded with zeros to a multiple of [`ALIGN`].
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `TLC1` |
//! | 4 | 4 | crc32c of bytes 8 to 47 |
//! | 8 | 2 | version |
//! | 10 | 1 | kind |
//! | 11 | 1 | flags |
//! | 12 | 4 | payload length, without padding |
//! | 16 | 8 | generation |
//! | 24 | 8 | sequence number |
//! | 32 | 8 | stamp: the sender's clock, echoed by an ack |
//! | 40 | 4 | crc32c of payload and padding |
//! | 44 | 4 | reserved, zero |
//!
//! The header has a checksum of its own so that a damaged length is found at once, not after waiting
//! for bytes that nobody sent.

use thiserror::Error;

use crate::checksum;

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"TLC1";
/// Version of the frame format. A peer with another one is refused in the handshake.
pub const VERSION: u16 = 1;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 48;
/// Alignment of frames and of their payloads, in bytes.
pub const ALIGN: usize = 16;
/// Longest frame, header and padding included. A forced stop ships pages, so it is generous.
pub const MAX_FRAME: usize = 4 << 20;
/// Longest payload.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER_LEN;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Log entries, primary to backup.
    Batch = 1,
    /// A piece of the machine's state, primary to backup, in the same order as the log.
    State = 2,
    /// Nothing to log, still there: keeps the log stream from looking dead. No payload.
    Heartbeat = 3,
    /// The log ends here by intention: the sender goes away in good order. No payload.
    Goodbye = 4,
    /// How far the backup has come, backup to primary.
    Ack = 5,
}

impl Kind {
    const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Batch,
            2 => Self::State,
            3 => Self::Heartbeat,
            4 => Self::Goodbye,
            5 => Self::Ack,
            _ => return None,
        })
    }
}

/// Properties of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// Nothing special: the frame may wait for company.
    pub const NONE: Self = Self(0);
    /// The frame carries the entry of an output: send it at once, someone waits for its ack.
    pub const OUTPUT: Self = Self(1);
    const KNOWN: u8 = 1;

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What the header says, apart from lengths and checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Properties.
    pub flags: Flags,
    /// The generation of the pair: rises with every failover.
    pub generation: u64,
    /// Rises by one per frame and direction, from 1.
    pub sequence: u64,
    /// The sender's clock in nanoseconds, for the peer to echo; 0 for none.
    pub stamp: u64,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Fewer bytes than the frame needs.
    #[error("frame cut short: {have} of {need} bytes")]
    Truncated {
        /// Bytes at hand.
        have: usize,
        /// Bytes the frame needs, as far as known.
        need: usize,
    },
    /// The buffer is not aligned to [`ALIGN`].
    #[error("frame starts at an address that is not a multiple of {ALIGN}")]
    Misaligned,
    /// The first four bytes are wrong: the stream is out of step, or it is not ours.
    #[error("no frame here: magic {0:02x?} instead of {MAGIC:02x?}")]
    Magic([u8; 4]),
    /// The header was damaged on its way.
    #[error("header checksum {computed:#010x}, the header says {stated:#010x}")]
    HeaderChecksum {
        /// What the bytes add up to.
        computed: u32,
        /// What the header says.
        stated: u32,
    },
    /// Another version of the format.
    #[error("frame version {0}, this side speaks {VERSION}")]
    Version(u16),
    /// A kind this version does not have.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A flag this version does not have.
    #[error("unknown frame flags {0:#04x}")]
    Flags(u8),
    /// The reserved field is not zero.
    #[error("reserved header field is {0:#x}, not zero")]
    Reserved(u32),
    /// Longer than a frame may be.
    #[error("payload of {0} bytes, at most {MAX_PAYLOAD} fit a frame")]
    Oversized(usize),
    /// The payload was damaged on its way.
    #[error("payload checksum {computed:#010x}, the header says {stated:#010x}")]
    PayloadChecksum {
        /// What the bytes add up to.
        computed: u32,
        /// What the header says.
        stated: u32,
    },
    /// The bytes after the payload are not zero.
    #[error("padding after the payload is not zero")]
    Padding,
}

/// Bytes a payload occupies with header and padding.
#[must_use]
pub const fn frame_len(payload_len: usize) -> usize {
    (HEADER_LEN + payload_len).next_multiple_of(ALIGN)
}

/// Completes a frame whose payload stands already at `frame[HEADER_LEN..]`: pads it and writes the
/// header. Returns the length of the whole frame.
///
/// # Errors
/// [`FrameError::Oversized`] if the payload is too long, [`FrameError::Truncated`] if header, payload
/// and padding do not fit `frame`.
pub fn seal(frame: &mut [u8], header: &Header, payload_len: usize) -> Result<usize, FrameError> {
    if payload_len > MAX_PAYLOAD {
        return Err(FrameError::Oversized(payload_len));
    }
    let len = frame_len(payload_len);
    let have = frame.len();
    let frame = frame.get_mut(..len).ok_or(FrameError::Truncated { have, need: len })?;
    if let Some(last) = frame.last_chunk_mut::<ALIGN>() {
        // The padding is the end of the last line of 16 bytes: in two registers, where `fill` would call memset.
        let padding = len - HEADER_LEN - payload_len;
        *last = (u128::from_le_bytes(*last) & (u128::MAX >> (8 * padding))).to_le_bytes();
    }
    // Whole words: a checksum that reads back what was just written in smaller pieces waits for all of them.
    let mut words = [
        u64::from(u32::from_le_bytes(MAGIC)),
        u64::from(VERSION)
            | u64::from(header.kind as u8) << 16
            | u64::from(header.flags.0) << 24
            | (payload_len as u64) << 32,
        header.generation,
        header.sequence,
        header.stamp,
        u64::from(checksum::crc32c(&frame[HEADER_LEN..])),
    ]
    .map(u64::to_le_bytes);
    let header_crc = checksum::crc32c(words[1..].as_flattened());
    words[0][4..].copy_from_slice(&header_crc.to_le_bytes());
    frame[..HEADER_LEN].copy_from_slice(words.as_flattened());
    Ok(len)
}

/// Writes a whole frame into `out`. Returns its length.
///
/// # Errors
/// As [`seal`].
pub fn encode(header: &Header, payload: &[u8], out: &mut [u8]) -> Result<usize, FrameError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(FrameError::Oversized(payload.len()));
    }
    let have = out.len();
    out.get_mut(HEADER_LEN..HEADER_LEN + payload.len())
        .ok_or(FrameError::Truncated { have, need: frame_len(payload.len()) })?
        .copy_from_slice(payload);
    seal(out, header, payload.len())
}

/// A header off the wire, with the lengths and the checksum that its payload must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the frame is.
    pub header: Header,
    payload_len: u32,
    payload_crc: u32,
}

impl Envelope {
    /// Reads and checks a header; needs the first [`HEADER_LEN`] bytes of `bytes`, at any alignment.
    ///
    /// # Errors
    /// Everything but [`FrameError::Misaligned`], [`FrameError::PayloadChecksum`] and
    /// [`FrameError::Padding`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(h) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(FrameError::Truncated { have: bytes.len(), need: HEADER_LEN });
        };
        let magic = [h[0], h[1], h[2], h[3]];
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let (computed, stated) = (checksum::crc32c(&h[8..]), u32_at(h, 4));
        if computed != stated {
            return Err(FrameError::HeaderChecksum { computed, stated });
        }
        let version = u16::from_le_bytes([h[8], h[9]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = Kind::from_wire(h[10]).ok_or(FrameError::Kind(h[10]))?;
        if h[11] & !Flags::KNOWN != 0 {
            return Err(FrameError::Flags(h[11]));
        }
        let payload_len = u32_at(h, 12);
        if payload_len as usize > MAX_PAYLOAD {
            return Err(FrameError::Oversized(payload_len as usize));
        }
        let reserved = u32_at(h, 44);
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        Ok(Self {
            header: Header {
                kind,
                flags: Flags(h[11]),
                generation: u64_at(h, 16),
                sequence: u64_at(h, 24),
                stamp: u64_at(h, 32),
            },
            payload_len,
            payload_crc: u32_at(h, 40),
        })
    }

    /// Length of the whole frame in bytes: at most [`MAX_FRAME`], a multiple of [`ALIGN`].
    #[must_use]
    pub const fn frame_len(&self) -> usize {
        frame_len(self.payload_len as usize)
    }

    /// Checks the payload of the frame that this header begins. `frame` holds the whole frame.
    ///
    /// # Errors
    /// [`FrameError::Truncated`], [`FrameError::PayloadChecksum`], [`FrameError::Padding`].
    pub fn verify(&self, frame: &[u8]) -> Result<(), FrameError> {
        let need = self.frame_len();
        let rest = frame.get(HEADER_LEN..need).ok_or(FrameError::Truncated { have: frame.len(), need })?;
        let computed = checksum::crc32c(rest);
        if computed != self.payload_crc {
            return Err(FrameError::PayloadChecksum { computed, stated: self.payload_crc });
        }
        if rest[self.payload_len as usize..].iter().any(|&byte| byte != 0) {
            return Err(FrameError::Padding);
        }
        Ok(())
    }
}

/// A frame in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the header says.
    pub header: Header,
    /// The payload, aligned to [`ALIGN`], without padding.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `bytes`, checking everything.
    ///
    /// # Errors
    /// Any [`FrameError`]; `bytes` must be aligned to [`ALIGN`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let envelope = Envelope::decode(bytes)?;
        envelope.verify(bytes)?;
        Self::in_place(bytes, &envelope)
    }

    /// Reads a frame whose payload was verified before it was stored, as those in a ring are.
    ///
    /// # Errors
    /// As [`Envelope::decode`], and [`FrameError::Misaligned`].
    pub fn verified_before(bytes: &'a [u8]) -> Result<Self, FrameError> {
        Self::in_place(bytes, &Envelope::decode(bytes)?)
    }

    fn in_place(bytes: &'a [u8], envelope: &Envelope) -> Result<Self, FrameError> {
        if !bytes.as_ptr().addr().is_multiple_of(ALIGN) {
            return Err(FrameError::Misaligned);
        }
        let need = envelope.frame_len();
        let payload = bytes
            .get(HEADER_LEN..HEADER_LEN + envelope.payload_len as usize)
            .ok_or(FrameError::Truncated { have: bytes.len(), need })?;
        Ok(Self { header: envelope.header, payload })
    }

    /// Length of the whole frame in bytes: where the next one starts.
    #[must_use]
    pub const fn wire_len(&self) -> usize {
        frame_len(self.payload.len())
    }
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rkyv::util::AlignedVec;

    const HEADER: Header =
        Header { kind: Kind::Batch, flags: Flags::OUTPUT, generation: 3, sequence: 77, stamp: 12_345 };

    fn framed(payload: &[u8]) -> AlignedVec<16> {
        let mut frame = AlignedVec::<16>::new();
        frame.resize(frame_len(payload.len()), 0xff);
        assert_eq!(encode(&HEADER, payload, &mut frame), Ok(frame.len()));
        frame
    }

    fn aligned(bytes: &[u8]) -> AlignedVec<16> {
        let mut copy = AlignedVec::<16>::new();
        copy.extend_from_slice(bytes);
        copy
    }

    /// Changes one header byte and makes the header checksum right again.
    fn forged(at: usize, byte: u8) -> Result<(), FrameError> {
        let mut frame = framed(b"payload");
        frame[at] = byte;
        let crc = checksum::crc32c(&frame[8..HEADER_LEN]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        Frame::decode(&frame).map(|_| ())
    }

    #[test]
    fn every_malformed_header_has_its_own_error() {
        let whole = framed(b"payload");
        assert_eq!(Frame::decode(&whole[..20]), Err(FrameError::Truncated { have: 20, need: 48 }));
        assert_eq!(Frame::decode(&whole[..48]), Err(FrameError::Truncated { have: 48, need: 64 }));
        let mut shifted = AlignedVec::<16>::new();
        shifted.push(0);
        shifted.extend_from_slice(&whole);
        assert_eq!(Frame::decode(&shifted[1..]), Err(FrameError::Misaligned));
        assert!(matches!(forged(0, b'X'), Err(FrameError::Magic(_))));
        assert_eq!(forged(8, 9), Err(FrameError::Version(9)));
        assert_eq!(forged(10, 0), Err(FrameError::Kind(0)));
        assert_eq!(forged(11, 0x82), Err(FrameError::Flags(0x82)));
        assert_eq!(forged(15, 1), Err(FrameError::Oversized(0x0100_0007)));
        assert_eq!(forged(44, 1), Err(FrameError::Reserved(1)));
        assert!(matches!(forged(40, 0), Err(FrameError::PayloadChecksum { .. })));
        let mut damaged = framed(b"payload");
        damaged[20] ^= 1;
        assert!(matches!(Frame::decode(&damaged), Err(FrameError::HeaderChecksum { .. })));
    }

    #[test]
    fn padding_that_is_not_zero_is_refused_even_with_a_right_checksum() {
        let mut frame = framed(b"payload");
        let last = frame.len() - 1;
        frame[last] = 1;
        let crc = checksum::crc32c(&frame[HEADER_LEN..]);
        frame[40..44].copy_from_slice(&crc.to_le_bytes());
        let crc = checksum::crc32c(&frame[8..HEADER_LEN]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Frame::decode(&frame), Err(FrameError::Padding));
    }

    #[test]
    fn the_largest_payload_fits_and_one_more_byte_does_not() {
        let payload = vec![0xa5; MAX_PAYLOAD + 1];
        let frame = framed(&payload[..MAX_PAYLOAD]);
        assert_eq!(frame.len(), MAX_FRAME);
        assert_eq!(Frame::decode(&frame).unwrap().payload.len(), MAX_PAYLOAD);
        let mut out = vec![0; MAX_FRAME + ALIGN];
        assert_eq!(encode(&HEADER, &payload, &mut out), Err(FrameError::Oversized(MAX_PAYLOAD + 1)));
    }

    #[test]
    fn a_buffer_too_small_is_refused() {
        let mut out = [0; 50];
        assert_eq!(encode(&HEADER, b"xyz", &mut out), Err(FrameError::Truncated { have: 50, need: 64 }));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(payload in proptest::collection::vec(any::<u8>(), 0..300),
                                       generation: u64, sequence: u64, stamp: u64) {
            let header = Header { kind: Kind::State, flags: Flags::NONE, generation, sequence, stamp };
            let mut frame = AlignedVec::<16>::new();
            frame.resize(frame_len(payload.len()), 0xff);
            prop_assert_eq!(encode(&header, &payload, &mut frame), Ok(frame.len()));
            let back = Frame::decode(&frame).unwrap();
            prop_assert_eq!(back.header, header);
            prop_assert_eq!(back.payload, &payload[..]);
            prop_assert_eq!(back.wire_len(), frame.len());
            prop_assert_eq!(back.payload.as_ptr().addr() % ALIGN, 0);
        }

        #[test]
        fn one_flipped_bit_is_always_found(payload in proptest::collection::vec(any::<u8>(), 0..100),
                                           at: prop::sample::Index, bit in 0u32..8) {
            let mut frame = framed(&payload);
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            prop_assert!(Frame::decode(&frame).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_magic: bool) {
            let mut bytes = aligned(&bytes);
            if with_magic && bytes.len() >= HEADER_LEN {
                bytes[..4].copy_from_slice(&MAGIC);
                let crc = crc32c::crc32c(&bytes[8..HEADER_LEN]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = Frame::decode(&bytes);
        }
    }
}
