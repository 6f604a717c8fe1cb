//! From a TCP stream on which hands were shaken to an RDMA connection.
//!
//! What goes over the stream is sealed with the handshake's session, whether the log itself is to be
//! encrypted or not: the backup's invitation (a port and a token for one connection), then, when that
//! stands, each side's keys. So a key leaves a side only to the peer that was authenticated.

use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::RdmaConfig;
use super::cm::{Events, Id};
use super::conn::{Connection, Remote};
use super::flow::{CREDIT_LEN, SENDS, SLOTS};
use super::verbs::{Mapped, Queues, Region};
use crate::handshake::{Session, Side};
use crate::transport::TransportError;
use crate::transport::buffer::SendBuffer;

const TAG: usize = 16;
const TOKEN: usize = 16;
const INVITATION: usize = 2 + TOKEN;
const KEYS: usize = 8 + 8 + 4 + 8 + 4 + 4;
const EXCHANGING: &str = "exchange RDMA keys with the peer";

/// Sets up the connection: `side` says who listens. `incoming` bytes is the ring for what the peer
/// sends, and `buffer` what this side sends from.
pub(super) fn connect(
    stream: &mut TcpStream,
    session: &mut Session,
    side: Side,
    incoming: usize,
    buffer: &SendBuffer,
    config: &RdmaConfig,
) -> Result<Connection, TransportError> {
    let deadline = Instant::now() + config.patience;
    let mut link = Link { stream, session, deadline };
    let exchanging = TransportError::io(EXCHANGING);
    let (here, there) = match (link.stream.local_addr(), link.stream.peer_addr()) {
        (Ok(here), Ok(there)) => (here, there),
        (Err(error), _) | (_, Err(error)) => return Err(exchanging(error)),
    };
    let events = Events::open()?;
    let made = match side {
        Side::Backup => {
            let (_listener, port) = Id::listen(&events, with_port(here, 0))?;
            let token = random()?;
            link.send(&[&port.to_le_bytes()[..], &token].concat())?;
            let id = events.request(&token, deadline)?;
            let made = Made::new(id, incoming, buffer)?;
            made.queues.id().accept(&events, deadline)?;
            made
        }
        Side::Primary => {
            let invitation: [u8; INVITATION] = link.receive()?;
            let [low, high, token @ ..] = invitation;
            let port = u16::from_le_bytes([low, high]);
            let id = Id::resolve(&events, with_port(here, 0), with_port(there, port), deadline)?;
            let made = Made::new(id, incoming, buffer)?;
            made.queues.id().connect(&events, &token, deadline)?;
            made
        }
    };
    link.send(&made.keys())?;
    let remote = remote(&link.receive::<KEYS>()?)?;
    let Made { queues, ring, word, local_key, .. } = made;
    Ok(Connection::new(queues, events, ring, word, remote, local_key))
}

/// A queue pair and the memory that the peer may write, before the peer knows where.
struct Made {
    queues: Queues,
    ring: Mapped,
    word: Mapped,
    local_key: u32,
    ring_key: u32,
    word_key: u32,
}

impl Made {
    fn new(id: Id, incoming: usize, buffer: &SendBuffer) -> Result<Self, TransportError> {
        let (ring, word) = (Mapped::new(incoming)?, Mapped::new(CREDIT_LEN)?);
        let mut queues = Queues::new(id, SENDS as u32, SLOTS as u32)?;
        let (start, len) = buffer.range();
        // SAFETY: the connection keeps ring and word until its queues are gone, and so does the sending
        // half with its buffer, by `Connection::retire`.
        let [local_key, ring_key, word_key] = unsafe {
            [
                queues.register(start, len, false).map(Region::local_key)?,
                queues.register(ring.as_ptr(), ring.len(), true).map(Region::remote_key)?,
                queues.register(word.as_ptr(), word.len(), true).map(Region::remote_key)?,
            ]
        };
        // Before the peer can send: a message that finds none would be an error.
        queues.post_receives(SLOTS as usize).map_err(TransportError::io("post RDMA receive requests"))?;
        Ok(Self { queues, ring, word, local_key, ring_key, word_key })
    }

    fn keys(&self) -> Vec<u8> {
        let mut keys = Vec::with_capacity(KEYS);
        keys.extend((self.ring.as_ptr() as u64).to_le_bytes());
        keys.extend((self.ring.len() as u64).to_le_bytes());
        keys.extend(self.ring_key.to_le_bytes());
        keys.extend((self.word.as_ptr() as u64).to_le_bytes());
        keys.extend(self.word_key.to_le_bytes());
        keys.extend((SLOTS as u32).to_le_bytes());
        keys
    }
}

fn remote(keys: &[u8; KEYS]) -> Result<Remote, TransportError> {
    let word = |at: usize| u64::from_le_bytes(keys[at..at + 8].try_into().unwrap_or_default());
    let half = |at: usize| u32::from_le_bytes(keys[at..at + 4].try_into().unwrap_or_default());
    let remote =
        Remote { ring: word(0), ring_len: word(8), ring_key: half(16), word: word(20), word_key: half(28) };
    // A ring's length must fit into an immediate value, and no message may look like the end.
    if half(32) != SLOTS as u32 || remote.ring_len < 4096 || remote.ring_len >= 1 << 31 {
        return Err(TransportError::Nonsense("its ring is not one that this version can use"));
    }
    Ok(remote)
}

/// Sealed messages of fixed lengths over the stream.
struct Link<'a> {
    stream: &'a mut TcpStream,
    session: &'a mut Session,
    deadline: Instant,
}

impl Link<'_> {
    fn send(&mut self, plain: &[u8]) -> Result<(), TransportError> {
        let mut sealed = vec![0; plain.len() + TAG];
        self.session
            .cipher
            .write_message(self.session.sent, plain, &mut sealed)
            .map_err(|_| TransportError::Seal)?;
        self.session.sent += 1;
        self.stream
            .set_write_timeout(Some(self.left()?))
            .and_then(|()| self.stream.write_all(&sealed))
            .map_err(TransportError::io(EXCHANGING))
    }

    fn receive<const LEN: usize>(&mut self) -> Result<[u8; LEN], TransportError> {
        let mut sealed = vec![0; LEN + TAG];
        let mut filled = 0;
        while filled < sealed.len() {
            let left = self.left()?;
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut sealed[filled..]));
            match read {
                Ok(0) => return Err(TransportError::Closed),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TransportError::io(EXCHANGING)(error)),
            }
        }
        let mut plain = [0; LEN];
        let opened = self.session.cipher.read_message(self.session.received, &sealed, &mut plain);
        if opened != Ok(LEN) {
            return Err(TransportError::Seal);
        }
        self.session.received += 1;
        Ok(plain)
    }

    fn left(&self) -> Result<Duration, TransportError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TransportError::io(EXCHANGING)(io::ErrorKind::TimedOut.into()));
        }
        Ok(left)
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

fn random() -> Result<[u8; TOKEN], TransportError> {
    let mut bytes = [0; TOKEN];
    // SAFETY: so many writable bytes; so few come whole or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == TOKEN as isize {
        Ok(bytes)
    } else {
        Err(TransportError::io("get random bytes")(io::Error::last_os_error()))
    }
}
