//! rkyv archives in frames.
//!
//! Encoding writes the archive behind a gap for the header, straight into the buffer it will be sent
//! from; nothing is allocated once the encoder's scratch arena has grown to what the type needs.
//! Reading validates the archive where it lies (bytecheck) and copies nothing.

use rkyv::api::high::HighValidator;
use rkyv::api::low::LowSerializer;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{self, Failure, Source, fail};
use rkyv::ser::allocator::{Arena, ArenaHandle};
use rkyv::ser::{Positional, Serializer, Writer};
use rkyv::util::AlignedVec;
use rkyv::{Archive, Portable, Serialize};
use std::fmt;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3Default;

use crate::ack::ACK_VERSION;
use crate::frame::{self, ALIGN, Frame, FrameError, HEADER_LEN, Header, MAX_FRAME, VERSION};

/// A type that can be put into a frame: any rkyv `Serialize` without shared pointers.
pub trait Encode: for<'a> Serialize<EncodeStrategy<'a>> {}
impl<T: for<'a> Serialize<EncodeStrategy<'a>>> Encode for T {}

/// A type that can be read from a frame in place, after validation.
pub trait Decode: Archive<Archived: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>> {}
impl<T: Archive<Archived: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>>> Decode for T {}

/// The rkyv serializer behind [`Encode`]: into a bounded slice, with a reused arena for scratch space.
pub type EncodeStrategy<'a> = LowSerializer<SliceWriter<'a>, ArenaHandle<'a>, Failure>;

/// Why a value was not encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The frame is longer than the buffer has room for.
    #[error("no room for the frame in a buffer of {room} bytes")]
    NoRoom {
        /// Bytes there were.
        room: usize,
    },
    /// The frame is longer than [`MAX_FRAME`].
    #[error("the frame is longer than {MAX_FRAME} bytes")]
    TooLong,
    /// The type refused to be serialized.
    #[error("the value cannot be archived")]
    Refused,
}

/// Why a payload is not a valid archive of the type asked for.
#[derive(Debug, Error)]
#[error("the payload is no valid archive of the type expected")]
pub struct AccessError(#[source] rancor::Error);

/// Writes an archive into a slice, never past its end.
#[derive(Debug)]
pub struct SliceWriter<'a> {
    room: &'a mut [u8],
    len: usize,
    overflowed: bool,
}

impl Positional for SliceWriter<'_> {
    fn pos(&self) -> usize {
        self.len
    }
}

impl<E: Source> Writer<E> for SliceWriter<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        let Some(room) = self.room.get_mut(self.len..).and_then(|left| left.get_mut(..bytes.len())) else {
            self.overflowed = true;
            fail!(Overflow);
        };
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }
}

#[derive(Debug, Error)]
#[error("the archive does not fit the buffer")]
struct Overflow;

/// Encodes values into frames, reusing its scratch space.
#[derive(Default)]
pub struct Encoder {
    arena: Arena,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("scratch", &self.arena.capacity()).finish()
    }
}

impl Encoder {
    /// An encoder with a small arena; it grows to what the values need and stays there.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes header and archive of `value` to the start of `room`, which must be aligned to
    /// [`ALIGN`]. Returns the length of the frame.
    ///
    /// # Errors
    /// Any [`EncodeError`]; what `room` holds then is undefined, but nothing was written past it.
    pub fn encode<T: Encode>(
        &mut self,
        header: &Header,
        value: &T,
        room: &mut [u8],
    ) -> Result<usize, EncodeError> {
        debug_assert!(room.is_empty() || room.as_ptr().addr().is_multiple_of(ALIGN));
        let available = room.len();
        let too_small = if available >= MAX_FRAME {
            EncodeError::TooLong
        } else {
            EncodeError::NoRoom { room: available }
        };
        if available < HEADER_LEN {
            return Err(too_small);
        }
        let bound = available.min(MAX_FRAME);
        let writer = SliceWriter { room: &mut room[..bound], len: HEADER_LEN, overflowed: false };
        let mut serializer = Serializer::new(writer, self.arena.acquire(), ());
        let archived = rkyv::api::serialize_using::<_, Failure>(value, &mut serializer);
        let SliceWriter { len, overflowed, .. } = serializer.into_writer();
        if archived.is_err() {
            return Err(if overflowed { too_small } else { EncodeError::Refused });
        }
        frame::seal(room, header, len - HEADER_LEN).map_err(|_| too_small)
    }
}

/// A reusable aligned buffer that holds one frame, for callers that keep or store frames themselves.
#[derive(Debug, Default)]
pub struct FrameBuf {
    bytes: AlignedVec<ALIGN>,
    encoder: Encoder,
}

impl FrameBuf {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes `value`, growing the buffer where needed, and returns the frame.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] and [`EncodeError::Refused`].
    pub fn encode<T: Encode>(&mut self, header: &Header, value: &T) -> Result<&[u8], EncodeError> {
        loop {
            match self.encoder.encode(header, value, &mut self.bytes) {
                Ok(len) => return Ok(&self.bytes[..len]),
                Err(EncodeError::NoRoom { room }) => {
                    self.bytes.resize((room * 2).clamp(1024, MAX_FRAME), 0);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in bytes from elsewhere (a file), aligned, and checks that they start with a frame.
    ///
    /// # Errors
    /// Any [`FrameError`] but [`FrameError::Misaligned`].
    pub fn load(&mut self, bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        Frame::decode(&self.bytes)
    }
}

/// The archived value in `payload`, validated where it lies.
///
/// # Errors
/// [`AccessError`] if the bytes are not a valid archive of `T`, or not aligned for it.
pub fn access<T: Decode>(payload: &[u8]) -> Result<&T::Archived, AccessError> {
    rkyv::access::<T::Archived, rancor::Error>(payload).map_err(AccessError)
}

/// Names the layout of everything that crosses the channel. rkyv archives carry no schema, so two
/// sides whose digests differ must not talk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SchemaDigest(pub [u8; 16]);

impl SchemaDigest {
    /// The digest of a description of the caller's types (any text that changes whenever their layout
    /// does) together with this crate's own format versions.
    #[must_use]
    pub fn of(description: &str) -> Self {
        let mut hash = Xxh3Default::new();
        hash.update(b"tandem-logchan\0rkyv-0.8\0little-endian\0pointer-width-32\0");
        hash.update(&VERSION.to_le_bytes());
        hash.update(&ACK_VERSION.to_le_bytes());
        hash.update(description.as_bytes());
        Self(hash.digest128().to_le_bytes())
    }
}

impl fmt::Display for SchemaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SchemaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SchemaDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Flags, Kind, MAX_PAYLOAD};
    use proptest::prelude::*;

    #[derive(Archive, rkyv::Serialize, Clone, Copy, Debug, PartialEq)]
    enum Entry {
        Time { nanos: u64 },
        Packet { nic: u8, at: u32, len: u32 },
    }

    #[derive(Archive, rkyv::Serialize, Debug)]
    struct Batch {
        position: u64,
        entries: Vec<Entry>,
        blob: Vec<u8>,
    }

    const HEADER: Header =
        Header { kind: Kind::Batch, flags: Flags::NONE, generation: 1, sequence: 1, stamp: 0 };

    fn batch(blob: usize) -> Batch {
        let entries = vec![Entry::Time { nanos: 5 }, Entry::Packet { nic: 1, at: 0, len: blob as u32 }];
        Batch { position: 9, entries, blob: vec![0x5a; blob] }
    }

    #[test]
    fn a_batch_is_read_where_it_lies() {
        let mut buffer = FrameBuf::new();
        let frame = Frame::decode(buffer.encode(&HEADER, &batch(3000)).unwrap()).unwrap();
        let archived = access::<Batch>(frame.payload).unwrap();
        assert_eq!(archived.position, 9);
        assert_eq!(archived.entries.len(), 2);
        assert!(matches!(archived.entries[1], ArchivedEntry::Packet { nic: 1, .. }));
        assert_eq!(archived.blob.len(), 3000);
    }

    #[test]
    fn a_bounded_buffer_says_no_room_and_an_oversized_value_too_long() {
        let mut encoder = Encoder::new();
        let mut room = AlignedVec::<16>::new();
        room.resize(1024, 0);
        assert_eq!(encoder.encode(&HEADER, &batch(2000), &mut room), Err(EncodeError::NoRoom { room: 1024 }));
        assert!(encoder.encode(&HEADER, &batch(100), &mut room).is_ok(), "usable after an overflow");
        assert_eq!(FrameBuf::new().encode(&HEADER, &batch(MAX_PAYLOAD)), Err(EncodeError::TooLong));
    }

    #[test]
    fn the_schema_digest_follows_the_description() {
        assert_eq!(SchemaDigest::of("a"), SchemaDigest::of("a"));
        assert_ne!(SchemaDigest::of("a"), SchemaDigest::of("b"));
        assert_eq!(SchemaDigest([0xab; 16]).to_string(), "ab".repeat(16));
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut aligned = AlignedVec::<16>::new();
            aligned.extend_from_slice(&bytes);
            let _ = access::<Batch>(&aligned);
        }

        #[test]
        fn a_damaged_archive_is_refused_or_harmless(at: prop::sample::Index, byte: u8) {
            let mut buffer = FrameBuf::new();
            let frame = buffer.encode(&HEADER, &batch(100)).unwrap();
            let payload = Frame::decode(frame).unwrap().payload;
            let mut copy = AlignedVec::<16>::new();
            copy.extend_from_slice(payload);
            let at = at.index(copy.len());
            copy[at] = byte;
            if let Ok(archived) = access::<Batch>(&copy) {
                let total: usize = archived.blob.iter().map(|b| usize::from(*b)).sum();
                prop_assert!(total <= 255 * archived.blob.len());
            }
        }
    }
}
