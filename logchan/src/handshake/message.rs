//! Handshake messages: an envelope in the clear, and the hello that travels encrypted in it.
//!
//! The envelope, 16 bytes: magic `TLHS`, a byte-order mark (0x01020304 as the sender stores it), then
//! little-endian the version (2), the kind (1), a zero byte, and the body's length (4).

use super::identity::{Identity, MAX_NAME, MAX_PARTS, MAX_TEXT, Part};
use super::{HandshakeError, Side};
use crate::codec::SchemaDigest;

/// First four bytes of every handshake message.
pub(super) const MAGIC: [u8; 4] = *b"TLHS";
/// Version of the handshake; frames have their own.
pub const VERSION: u16 = 1;
/// Bytes of the envelope.
pub const ENVELOPE_LEN: usize = 16;
/// Longest body. The largest hello fits well.
pub const MAX_BODY: usize = 16 << 10;

const BYTE_ORDER: u32 = 0x0102_0304;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// Initiator to responder: first Noise message, with the initiator's hello.
    Open = 1,
    /// Responder to initiator: second Noise message, with the responder's hello and verdict.
    Answer = 2,
    /// Initiator to responder: the initiator's verdict, in the finished session.
    Verdict = 3,
    /// Either way, in the clear: there is no common ground for more than a sentence.
    Refusal = 4,
}

/// Puts a body into an envelope.
pub(super) fn wrap(kind: MessageKind, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(ENVELOPE_LEN + body.len());
    message.extend_from_slice(&MAGIC);
    message.extend_from_slice(&BYTE_ORDER.to_ne_bytes());
    message.extend_from_slice(&VERSION.to_le_bytes());
    message.extend_from_slice(&[kind as u8, 0]);
    message.extend_from_slice(&(body.len() as u32).to_le_bytes());
    message.extend_from_slice(body);
    message
}

/// Reads an envelope: what the message is, and how many bytes of body follow.
///
/// # Errors
/// [`HandshakeError::NotTandem`], [`HandshakeError::ByteOrder`], [`HandshakeError::Version`],
/// [`HandshakeError::Malformed`], [`HandshakeError::Oversized`].
pub fn envelope(bytes: &[u8; ENVELOPE_LEN]) -> Result<(MessageKind, usize), HandshakeError> {
    let mut word = [[0; 4]; 4];
    word.copy_from_slice(bytes.as_chunks::<4>().0);
    if word[0] != MAGIC {
        return Err(HandshakeError::NotTandem(word[0]));
    }
    if word[1] != BYTE_ORDER.to_ne_bytes() {
        return Err(HandshakeError::ByteOrder { ours: BYTE_ORDER.to_ne_bytes(), theirs: word[1] });
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        return Err(HandshakeError::Version { ours: VERSION, theirs: version });
    }
    let kind = match bytes[10] {
        1 => MessageKind::Open,
        2 => MessageKind::Answer,
        3 => MessageKind::Verdict,
        4 => MessageKind::Refusal,
        _ => return Err(HandshakeError::Malformed("unknown kind of message")),
    };
    if bytes[11] != 0 {
        return Err(HandshakeError::Malformed("the reserved byte is not zero"));
    }
    let len = u32::from_le_bytes(word[3]) as usize;
    if len > MAX_BODY {
        return Err(HandshakeError::Oversized(len));
    }
    Ok((kind, len))
}

/// What each side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Primary or backup.
    pub side: Side,
    /// The generation of the pair. A backup that joins anew says 0 and takes the primary's.
    pub generation: u64,
    /// Whether the stream is to be encrypted after the handshake.
    pub encrypt: bool,
    /// Layout of what the frames carry.
    pub schema: SchemaDigest,
    /// The machine.
    pub identity: Identity,
}

impl Hello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(&[self.side as u8, u8::from(self.encrypt)]);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.schema.0);
        out.extend_from_slice(&self.identity.hash);
        out.push(self.identity.parts.len() as u8);
        for part in &self.identity.parts {
            put_text(&mut out, &part.name);
            out.extend_from_slice(&part.digest);
            put_text(&mut out, &part.text);
        }
        out
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, HandshakeError> {
        let side = match reader.byte()? {
            1 => Side::Primary,
            2 => Side::Backup,
            _ => return Err(HandshakeError::Malformed("neither primary nor backup")),
        };
        let encrypt = match reader.byte()? {
            0 => false,
            1 => true,
            _ => return Err(HandshakeError::Malformed("encryption neither on nor off")),
        };
        let generation = u64::from_le_bytes(reader.array()?);
        let schema = SchemaDigest(reader.array()?);
        let hash = reader.array()?;
        let count = usize::from(reader.byte()?);
        if count > MAX_PARTS {
            return Err(HandshakeError::Malformed("too many parts in the identity"));
        }
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            let name = reader.text(MAX_NAME)?;
            let digest = reader.array()?;
            parts.push(Part { name, digest, text: reader.text(MAX_TEXT)? });
        }
        Ok(Self { side, generation, encrypt, schema, identity: Identity { hash, parts } })
    }
}

/// A verdict: empty for yes, a sentence for no.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Reads fields off a body.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, HandshakeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HandshakeError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(HandshakeError::Malformed("cut short"))?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn text(&mut self, max: usize) -> Result<String, HandshakeError> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > max {
            return Err(HandshakeError::Malformed("a text is too long"));
        }
        let (text, rest) = self.0.split_at_checked(len).ok_or(HandshakeError::Malformed("cut short"))?;
        self.0 = rest;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(HandshakeError::Malformed("a text is not UTF-8")),
        }
    }

    pub(super) fn end(&self) -> Result<(), HandshakeError> {
        if self.0.is_empty() { Ok(()) } else { Err(HandshakeError::Malformed("bytes after the end")) }
    }
}

/// Reads a hello as it stands inside a message, for fuzzing: the real path decrypts first.
///
/// # Errors
/// [`HandshakeError::Malformed`].
pub fn decode_hello(body: &[u8]) -> Result<Hello, HandshakeError> {
    let mut reader = Reader(body);
    let hello = Hello::decode(&mut reader)?;
    reader.end()?;
    Ok(hello)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        let identity = Identity::builder().part("kernel", "6.1", b"k").part("memory", "64", b"m").build();
        let schema = SchemaDigest::of("x");
        Hello { side: Side::Backup, generation: 3, encrypt: true, schema, identity }
    }

    #[test]
    fn a_hello_is_read_back_and_every_cut_is_refused() {
        let bytes = hello().encode();
        assert_eq!(decode_hello(&bytes).unwrap(), hello());
        for len in 0..bytes.len() {
            assert!(matches!(decode_hello(&bytes[..len]), Err(HandshakeError::Malformed(_))));
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(matches!(decode_hello(&longer), Err(HandshakeError::Malformed("bytes after the end"))));
    }

    #[test]
    fn the_largest_hello_fits_a_message() {
        let mut builder = Identity::builder();
        for n in 0..MAX_PARTS {
            builder = builder.part(&format!("{n:x<40}"), &"y".repeat(999), b"");
        }
        let hello = Hello { identity: builder.build(), ..hello() };
        let bytes = hello.encode();
        assert!(bytes.len() + 512 < MAX_BODY, "{} bytes", bytes.len());
        assert_eq!(decode_hello(&bytes).unwrap(), hello);
    }

    #[test]
    fn envelopes_that_are_not_ours_are_named() {
        let good: [u8; ENVELOPE_LEN] = wrap(MessageKind::Open, &[0; 9])[..ENVELOPE_LEN].try_into().unwrap();
        assert_eq!(envelope(&good).unwrap(), (MessageKind::Open, 9));
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            envelope(&bytes).unwrap_err()
        };
        assert!(matches!(with(0, b'G'), HandshakeError::NotTandem([b'G', ..])));
        assert!(matches!(with(4, 1), HandshakeError::ByteOrder { .. }));
        assert!(matches!(with(8, 9), HandshakeError::Version { ours: 1, theirs: 9 }));
        assert!(matches!(with(10, 77), HandshakeError::Malformed(_)));
        assert!(matches!(with(14, 1), HandshakeError::Oversized(_)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300),
                                       head in any::<[u8; ENVELOPE_LEN]>()) {
            let _ = decode_hello(&body);
            let _ = envelope(&head);
        }

        #[test]
        fn a_damaged_hello_never_panics(at: prop::sample::Index, byte: u8) {
            let mut bytes = hello().encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode_hello(&bytes);
        }
    }
}
