//! Who may talk to whom: versions, identity of the machine, pre-shared key.
//!
//! Three messages, before the first frame:
//!
//! 1. initiator (the primary, it connects) to responder: `Noise_NNpsk0` first message, carrying the
//!    initiator's [`Hello`];
//! 2. responder to initiator: second Noise message, carrying the responder's hello and its verdict;
//! 3. initiator to responder: its verdict, in the finished session. The responder trusts nothing
//!    before this one: a recorded first message cannot be followed by it.
//!
//! Both sides compare both hellos, so a mismatch is refused on both sides with both values. Version
//! and byte order stand in the clear in front of every message, because without them nothing else can
//! be read. The key proves each side to the other; with `encrypt` off the stream that follows is
//! protected by checksums only, which find damage, not intent: use it on a link of your own.
//!
//! [`Handshake`] is a state machine without I/O; [`run`] drives it over a TCP stream.

use snow::{Builder, HandshakeState, StatelessTransportState};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

use crate::codec::SchemaDigest;

mod drive;
mod identity;
mod key;
mod message;

pub use drive::run;
pub use identity::{Identity, IdentityBuilder, MAX_NAME, MAX_PARTS, MAX_TEXT, Part};
pub use key::{KeyError, PreSharedKey};
pub use message::{ENVELOPE_LEN, Hello, MAX_BODY, MessageKind, VERSION, decode_hello, envelope};
use message::{Reader, put_text, wrap};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"tandem log channel, handshake 1";
const PURPOSE: &str = "tandem log channel 1";
/// Longest sentence of a refusal that is taken from a peer.
const MAX_REASON: usize = 2048;
/// Bytes Noise adds to a message at most: an ephemeral key and a tag.
const NOISE_OVERHEAD: usize = 32 + 16;

/// Which end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// Runs the machine and logs. Connects, so it is the initiator.
    Primary = 1,
    /// Replays the log. Listens, so it is the responder.
    Backup = 2,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// One thing in which the two sides differ, with both values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Mismatch {
    /// Two primaries, or two backups.
    #[error("both sides are {0}")]
    Side(Side),
    /// Different layouts of log entries: different builds of Tandem.
    #[error("log schema: here {ours}, peer {theirs} (install the same version of tandem on both hosts)")]
    Schema {
        /// This side's.
        ours: SchemaDigest,
        /// The peer's.
        theirs: SchemaDigest,
    },
    /// Different generations of the pair: one of them has missed a failover.
    #[error("generation: here {ours}, peer {theirs}")]
    Generation {
        /// This side's.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// One side encrypts, the other does not.
    #[error("encryption: here {}, peer {}", on_off(*ours), on_off(!*ours))]
    Encryption {
        /// This side's setting.
        ours: bool,
    },
    /// A part of the machine differs.
    #[error("{}: here {}, peer {}", name.escape_debug(), part_or_none(ours), part_or_none(theirs))]
    Part {
        /// Which.
        name: String,
        /// What it is here.
        ours: Option<Part>,
        /// What it is there.
        theirs: Option<Part>,
    },
    /// The machines differ in a part that is not listed.
    #[error("machine identity: here {}, peer {}", hex(ours), hex(theirs))]
    Identity {
        /// This side's hash.
        ours: [u8; 32],
        /// The peer's hash.
        theirs: [u8; 32],
    },
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn part_or_none(part: &Option<Part>) -> String {
    part.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything in which two sides differ; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatches(pub Vec<Mismatch>);

impl fmt::Display for Mismatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mismatch) in self.0.iter().enumerate() {
            write!(f, "{}{mismatch}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why there is no channel.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The peer speaks something else.
    #[error("the peer does not speak Tandem's log protocol: it starts with {0:02x?}")]
    NotTandem([u8; 4]),
    /// The hosts store integers differently.
    #[error("byte order: here {ours:02x?}, peer {theirs:02x?}: both hosts must be of one byte order")]
    ByteOrder {
        /// This side's mark.
        ours: [u8; 4],
        /// The peer's mark.
        theirs: [u8; 4],
    },
    /// Different versions of the handshake.
    #[error(
        "protocol version: here {ours}, peer {theirs} (install the same version of tandem on both hosts)"
    )]
    Version {
        /// This side's.
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
    /// The peer does not have the same key, or its message was altered.
    #[error("the peer does not prove the pre-shared key: compare the key files on both hosts")]
    Key,
    /// A message is longer than any can be.
    #[error("handshake message of {0} bytes, at most {MAX_BODY} are taken")]
    Oversized(usize),
    /// A message cannot be read.
    #[error("malformed handshake message: {0}")]
    Malformed(&'static str),
    /// A message came out of turn.
    #[error("handshake message {0:?} came out of turn")]
    OutOfTurn(MessageKind),
    /// The two sides differ.
    #[error("the two sides do not match: {0}")]
    Mismatch(Mismatches),
    /// The peer refused. Before the key is proved anybody could have said that.
    #[error("the peer refused: {}", .0.escape_debug())]
    Refused(String),
    /// The peer said nothing for too long.
    #[error("no handshake from the peer within {0:?}")]
    Silent(Duration),
    /// The peer went away in the middle.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The stream failed.
    #[error("the handshake cannot be sent or received")]
    Io(#[source] std::io::Error),
    /// The cryptographic library failed, for want of random numbers for example.
    #[error("the handshake cannot be computed: {0}")]
    Crypto(snow::Error),
}

/// What both sides agreed on.
#[derive(Debug)]
pub struct Agreed {
    /// What the peer said of itself.
    pub peer: Hello,
    /// The generation that every frame will carry.
    pub generation: u64,
    /// The session to encrypt the stream with, if both sides want that.
    pub session: Option<Session>,
    /// The session itself, for what must be sealed even where the stream is not.
    #[cfg(feature = "rdma")]
    pub(crate) keys: Session,
}

/// Keys for the stream, and the numbers of the next messages in both directions.
#[derive(Clone)]
pub struct Session {
    pub(crate) cipher: Arc<StatelessTransportState>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)")
    }
}

/// What to do after a message.
#[derive(Debug)]
pub enum Step {
    /// Send this and wait for the peer's next message.
    Send(Vec<u8>),
    /// Send this; the handshake is complete.
    SendLast(Vec<u8>, Agreed),
    /// The handshake is complete.
    Done(Agreed),
}

/// A failed handshake, and what to tell the peer before hanging up.
#[derive(Debug)]
pub struct Failed {
    /// A last message, if there is something the peer should know.
    pub reply: Option<Vec<u8>>,
    /// What went wrong.
    pub error: HandshakeError,
}

impl From<HandshakeError> for Failed {
    fn from(error: HandshakeError) -> Self {
        Self { reply: None, error }
    }
}

impl From<snow::Error> for Failed {
    fn from(error: snow::Error) -> Self {
        HandshakeError::Crypto(error).into()
    }
}

enum State {
    /// Responder before the first message.
    Listening(HandshakeState),
    /// Initiator after its first message.
    Opened(HandshakeState),
    /// Responder after its answer.
    Answered(StatelessTransportState, Hello),
    Over,
}

/// The handshake of one side, without I/O.
pub struct Handshake {
    hello: Hello,
    state: State,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Handshake {
    /// The handshake of a side that says `hello` and holds `key`. The primary sends first: the message
    /// comes along.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`].
    pub fn new(hello: Hello, key: &PreSharedKey) -> Result<(Self, Option<Vec<u8>>), HandshakeError> {
        let build = || -> Result<_, snow::Error> {
            let key = key.derive(PURPOSE);
            let builder = Builder::new(PATTERN.parse()?).prologue(PROLOGUE)?.psk(0, &key)?;
            if hello.side == Side::Backup {
                return Ok((State::Listening(builder.build_responder()?), None));
            }
            let mut noise = builder.build_initiator()?;
            let mut body = vec![0; MAX_BODY];
            let len = noise.write_message(&hello.encode(), &mut body)?;
            Ok((State::Opened(noise), Some(wrap(MessageKind::Open, &body[..len]))))
        };
        let (state, first) = build().map_err(HandshakeError::Crypto)?;
        Ok((Self { hello, state }, first))
    }

    /// Takes in one message of the peer, envelope and body.
    ///
    /// # Errors
    /// The handshake has failed; send [`Failed::reply`], if any, and hang up.
    pub fn on_message(&mut self, message: &[u8]) -> Result<Step, Failed> {
        let Some((head, body)) = message.split_first_chunk() else {
            return Err(HandshakeError::Malformed("cut short").into());
        };
        let (kind, len) = envelope(head).map_err(|error| self.refuse_in_the_clear(error))?;
        if body.len() != len {
            return Err(HandshakeError::Malformed("the length in the envelope is wrong").into());
        }
        if kind == MessageKind::Refusal {
            let reason = String::from_utf8_lossy(&body[..len.min(MAX_REASON)]).into_owned();
            return Err(HandshakeError::Refused(reason).into());
        }
        match (std::mem::replace(&mut self.state, State::Over), kind) {
            (State::Listening(noise), MessageKind::Open) => self.on_open(noise, body),
            (State::Opened(noise), MessageKind::Answer) => self.on_answer(noise, body),
            (State::Answered(cipher, peer), MessageKind::Verdict) => self.on_verdict(cipher, peer, body),
            (_, kind) => Err(HandshakeError::OutOfTurn(kind).into()),
        }
    }

    fn on_open(&mut self, mut noise: HandshakeState, body: &[u8]) -> Result<Step, Failed> {
        let mut plain = vec![0; MAX_BODY];
        let len = noise
            .read_message(body, &mut plain)
            .map_err(|_| self.refuse_in_the_clear(HandshakeError::Key))?;
        let peer = decode_hello(&plain[..len])?;
        let verdict = self.compare(&peer);
        let mut answer = self.hello.encode();
        put_text(&mut answer, &reason(&verdict));
        let mut body = vec![0; answer.len() + NOISE_OVERHEAD];
        let len = noise.write_message(&answer, &mut body)?;
        let answer = wrap(MessageKind::Answer, &body[..len]);
        match verdict {
            Some(found) => Err(Failed { reply: Some(answer), error: HandshakeError::Mismatch(found) }),
            None => {
                self.state = State::Answered(noise.into_stateless_transport_mode()?, peer);
                Ok(Step::Send(answer))
            }
        }
    }

    fn on_answer(&mut self, mut noise: HandshakeState, body: &[u8]) -> Result<Step, Failed> {
        let mut plain = vec![0; MAX_BODY];
        let len = noise.read_message(body, &mut plain).map_err(|_| HandshakeError::Key)?;
        let mut reader = Reader(&plain[..len]);
        let peer = Hello::decode(&mut reader)?;
        let refusal = reader.text(MAX_REASON)?;
        reader.end()?;
        let verdict = self.compare(&peer);
        let cipher = noise.into_stateless_transport_mode()?;
        let mut plain = Vec::new();
        put_text(&mut plain, &reason(&verdict));
        let mut body = vec![0; plain.len() + NOISE_OVERHEAD];
        let len = cipher.write_message(0, &plain, &mut body)?;
        let message = wrap(MessageKind::Verdict, &body[..len]);
        match verdict {
            Some(found) => Err(Failed { reply: Some(message), error: HandshakeError::Mismatch(found) }),
            None if !refusal.is_empty() => Err(HandshakeError::Refused(refusal).into()),
            None => Ok(Step::SendLast(message, self.agree(cipher, peer))),
        }
    }

    fn on_verdict(&self, cipher: StatelessTransportState, peer: Hello, body: &[u8]) -> Result<Step, Failed> {
        let mut plain = vec![0; MAX_BODY];
        let len = cipher.read_message(0, body, &mut plain).map_err(|_| HandshakeError::Key)?;
        let mut reader = Reader(&plain[..len]);
        let refusal = reader.text(MAX_REASON)?;
        reader.end()?;
        if refusal.is_empty() {
            Ok(Step::Done(self.agree(cipher, peer)))
        } else {
            Err(HandshakeError::Refused(refusal).into())
        }
    }

    fn agree(&self, cipher: StatelessTransportState, peer: Hello) -> Agreed {
        // The verdict was message 0 of the initiator's direction.
        let (sent, received) = if self.hello.side == Side::Primary { (1, 0) } else { (0, 1) };
        let keys = Session { cipher: Arc::new(cipher), sent, received };
        Agreed {
            generation: self.hello.generation.max(peer.generation),
            peer,
            session: self.hello.encrypt.then(|| keys.clone()),
            #[cfg(feature = "rdma")]
            keys,
        }
    }

    /// Everything in which the two sides differ.
    fn compare(&self, peer: &Hello) -> Option<Mismatches> {
        let ours = &self.hello;
        let mut found = Vec::new();
        if ours.side == peer.side {
            found.push(Mismatch::Side(ours.side));
        }
        if ours.schema != peer.schema {
            found.push(Mismatch::Schema { ours: ours.schema, theirs: peer.schema });
        }
        let joins = |hello: &Hello| hello.side == Side::Backup && hello.generation == 0;
        if ours.generation != peer.generation && !joins(ours) && !joins(peer) {
            found.push(Mismatch::Generation { ours: ours.generation, theirs: peer.generation });
        }
        if ours.encrypt != peer.encrypt {
            found.push(Mismatch::Encryption { ours: ours.encrypt });
        }
        let parts = ours.identity.differences(&peer.identity);
        if parts.is_empty() && ours.identity.hash != peer.identity.hash {
            found.push(Mismatch::Identity { ours: ours.identity.hash, theirs: peer.identity.hash });
        }
        found.extend(parts.into_iter().map(|(name, ours, theirs)| Mismatch::Part { name, ours, theirs }));
        (!found.is_empty()).then_some(Mismatches(found))
    }

    /// Tells the peer what is wrong when there are no keys to say it with.
    fn refuse_in_the_clear(&mut self, error: HandshakeError) -> Failed {
        self.state = State::Over;
        let known = matches!(
            error,
            HandshakeError::Key | HandshakeError::Version { .. } | HandshakeError::ByteOrder { .. }
        );
        // The peer's "here" is this side's "peer"; say whose view it is.
        let reply = known.then(|| {
            wrap(MessageKind::Refusal, format!("as the {} sees it: {error}", self.hello.side).as_bytes())
        });
        Failed { reply, error }
    }
}

fn reason(verdict: &Option<Mismatches>) -> String {
    let mut reason = verdict.as_ref().map(ToString::to_string).unwrap_or_default();
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason
}

#[cfg(all(test, not(loom)))]
mod tests;
