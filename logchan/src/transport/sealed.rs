//! A Noise session around any other transport.
//!
//! The stream is cut into chunks: two bytes of length (little-endian), then that many bytes of
//! ChaCha20-Poly1305 ciphertext with its tag, under the keys of the handshake, numbered from there on.
//! A flush seals all that was committed, in chunks of at most [`MAX_CHUNK`] bytes. Anything altered,
//! left out, repeated or moved does not open, and the channel is lost.

use std::time::{Duration, Instant};

use super::buffer::SendBuffer;
use super::{Duplex, ReceiveHalf, SendHalf, TransportError, Wake, Waker};
use crate::frame::MAX_FRAME;
use crate::handshake::Session;

/// Bytes of plain text in a chunk at most: what a Noise message holds.
pub const MAX_CHUNK: usize = 65_535 - TAG_LEN;
const TAG_LEN: usize = 16;
const PREFIX_LEN: usize = 2;
/// Plain bytes that a receiver holds at most before it leaves the rest sealed.
const WINDOW: usize = 256 << 10;
/// Bytes of plain replies that may wait.
const REPLY_ROOM: usize = 32 << 10;

/// Seals one chunk of `plain` into `out`; the bytes written.
fn seal(session: &mut Session, plain: &[u8], out: &mut [u8]) -> Result<usize, TransportError> {
    let (prefix, sealed) = out.split_at_mut(PREFIX_LEN);
    let len = session.cipher.write_message(session.sent, plain, sealed).map_err(|_| TransportError::Seal)?;
    prefix.copy_from_slice(&(len as u16).to_le_bytes());
    session.sent += 1;
    Ok(PREFIX_LEN + len)
}

/// Moves plain bytes to the half below, sealed, as far as there is room.
fn seal_into(
    session: &mut Session,
    plain: &mut SendBuffer,
    below: &mut impl SendHalf,
) -> Result<(), TransportError> {
    loop {
        let (first, second) = plain.unsubmitted();
        let run = if first.is_empty() { second } else { first };
        let room = below.room();
        let chunk = run.len().min(MAX_CHUNK).min(room.len().saturating_sub(PREFIX_LEN + TAG_LEN));
        if chunk == 0 {
            return Ok(());
        }
        let written = seal(session, &run[..chunk], room)?;
        below.commit(written);
        plain.done(chunk);
    }
}

/// A sending half that seals. If the half below is full, what is left stays plain until the next flush.
#[derive(Debug)]
pub struct SealedSend<S> {
    below: S,
    session: Session,
    plain: SendBuffer,
}

impl<S: SendHalf> SealedSend<S> {
    /// Seals everything that goes to `below`.
    pub fn new(below: S, session: Session) -> Self {
        let plain = SendBuffer::new(below.capacity().max(2 * MAX_FRAME));
        Self { below, session, plain }
    }
}

impl<S: SendHalf> SendHalf for SealedSend<S> {
    fn room(&mut self) -> &mut [u8] {
        self.plain.room()
    }

    fn commit(&mut self, len: usize) {
        self.plain.commit(len);
    }

    fn queued(&self) -> usize {
        self.plain.queued() + self.below.queued()
    }

    fn capacity(&self) -> usize {
        self.plain.capacity()
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        seal_into(&mut self.session, &mut self.plain, &mut self.below)?;
        self.below.flush()
    }

    fn finish(&mut self, patience: Duration) -> Result<(), TransportError> {
        let deadline = Instant::now() + patience;
        self.flush()?;
        while self.plain.queued() > 0 {
            if Instant::now() >= deadline {
                return Err(TransportError::Unsent { unsent: self.queued(), patience });
            }
            std::thread::sleep(Duration::from_millis(1));
            self.flush()?;
        }
        self.below.finish(deadline.saturating_duration_since(Instant::now()))
    }
}

/// Opens chunks into a bounded buffer of plain bytes.
#[derive(Debug)]
struct Opener {
    plain: Vec<u8>,
    consumed: usize,
}

impl Opener {
    fn new() -> Self {
        Self { plain: Vec::with_capacity(2 * WINDOW), consumed: 0 }
    }

    fn data(&self) -> &[u8] {
        &self.plain[self.consumed..]
    }

    fn consume(&mut self, len: usize) {
        assert!(len <= self.data().len(), "more consumed than received");
        self.consumed += len;
    }

    /// Opens whole chunks while there is room. Whether there was one.
    fn open(&mut self, session: &mut Session, below: &mut impl ReceiveHalf) -> Result<bool, TransportError> {
        self.plain.drain(..self.consumed);
        self.consumed = 0;
        let mut any = false;
        while self.plain.len() + MAX_CHUNK <= 2 * WINDOW {
            let Some((prefix, rest)) = below.data().split_first_chunk::<PREFIX_LEN>() else { break };
            let len = usize::from(u16::from_le_bytes(*prefix));
            let Some(sealed) = rest.get(..len) else { break };
            let start = self.plain.len();
            // The length of the plain text is the sealed one's less the tag; Noise wants room for both.
            self.plain.resize(start + len, 0);
            let opened = session.cipher.read_message(session.received, sealed, &mut self.plain[start..]);
            self.plain.truncate(start + *opened.as_ref().unwrap_or(&0));
            opened.map_err(|_| TransportError::Seal)?;
            session.received += 1;
            below.consume(PREFIX_LEN + len);
            any = true;
        }
        Ok(any)
    }

    fn wait(
        &mut self,
        session: &mut Session,
        below: &mut impl ReceiveHalf,
        timeout: Option<Duration>,
    ) -> Result<Wake, TransportError> {
        // Chunks left sealed for want of room come before new ones.
        if self.open(session, below)? {
            return below.wait(Some(Duration::ZERO)).map(|wake| Wake { data: true, ..wake });
        }
        let wake = below.wait(timeout)?;
        Ok(Wake { data: wake.data && self.open(session, below)?, ..wake })
    }
}

/// A receiving half that opens what was sealed.
#[derive(Debug)]
pub struct SealedReceive<R> {
    below: R,
    session: Session,
    opener: Opener,
}

impl<R: ReceiveHalf> SealedReceive<R> {
    /// Opens everything that comes from `below`.
    pub fn new(below: R, session: Session) -> Self {
        Self { below, session, opener: Opener::new() }
    }
}

/// A sealed backup's end.
#[derive(Debug)]
pub struct SealedDuplex<D> {
    below: D,
    session: Session,
    opener: Opener,
    replies: SendBuffer,
    scratch: Vec<u8>,
}

impl<D: Duplex> SealedDuplex<D> {
    /// Opens everything that comes from `below`, and seals every reply.
    pub fn new(below: D, session: Session) -> Self {
        let scratch = vec![0; PREFIX_LEN + REPLY_ROOM + TAG_LEN];
        Self { below, session, opener: Opener::new(), replies: SendBuffer::new(REPLY_ROOM), scratch }
    }

    /// Seals queued replies as one chunk, unless the network is behind.
    fn seal_replies(&mut self) -> Result<(), TransportError> {
        loop {
            let (first, second) = self.replies.unsubmitted();
            let run = if first.is_empty() { second } else { first };
            if run.is_empty() {
                return Ok(());
            }
            let len = run.len();
            let number = self.session.sent;
            let written = seal(&mut self.session, run, &mut self.scratch)?;
            if !self.below.reply(&self.scratch[..written])? {
                // This chunk never leaves; its number goes to the next one sealed.
                self.session.sent = number;
                return Ok(());
            }
            self.replies.done(len);
        }
    }
}

impl<R: ReceiveHalf> ReceiveHalf for SealedReceive<R> {
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        self.opener.wait(&mut self.session, &mut self.below, timeout)
    }

    fn data(&self) -> &[u8] {
        self.opener.data()
    }

    fn consume(&mut self, len: usize) {
        self.opener.consume(len);
    }

    fn waker(&self) -> Waker {
        self.below.waker()
    }

    fn watch(&mut self, fd: std::os::fd::OwnedFd) -> Result<(), TransportError> {
        self.below.watch(fd)
    }
}

impl<D: Duplex> ReceiveHalf for SealedDuplex<D> {
    fn wait(&mut self, timeout: Option<Duration>) -> Result<Wake, TransportError> {
        self.seal_replies()?;
        self.opener.wait(&mut self.session, &mut self.below, timeout)
    }

    fn data(&self) -> &[u8] {
        self.opener.data()
    }

    fn consume(&mut self, len: usize) {
        self.opener.consume(len);
    }

    fn waker(&self) -> Waker {
        self.below.waker()
    }

    fn watch(&mut self, fd: std::os::fd::OwnedFd) -> Result<(), TransportError> {
        self.below.watch(fd)
    }
}

impl<D: Duplex> Duplex for SealedDuplex<D> {
    fn reply(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let Some(room) = self.replies.room().get_mut(..bytes.len()) else { return Ok(false) };
        room.copy_from_slice(bytes);
        self.replies.commit(bytes.len());
        Ok(true)
    }

    fn shut(&mut self) -> bool {
        self.below.shut()
    }

    fn push(&mut self) -> Result<(), TransportError> {
        self.seal_replies()?;
        self.below.push()
    }
}
