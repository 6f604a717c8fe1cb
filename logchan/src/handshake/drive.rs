//! Driving a handshake over a TCP stream.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::message::{ENVELOPE_LEN, envelope};
use super::{Agreed, Failed, Handshake, HandshakeError, Hello, PreSharedKey, Step};

/// Shakes hands over a connected stream, within `patience` in all, and reads not one byte past it.
///
/// # Errors
/// Any [`HandshakeError`]; the peer was told where it can be told. The stream is of no further use.
pub fn run(
    stream: &mut TcpStream,
    hello: Hello,
    key: &PreSharedKey,
    patience: Duration,
) -> Result<Agreed, HandshakeError> {
    let mut link = Link { stream, deadline: Instant::now() + patience, patience };
    let (mut handshake, first) = Handshake::new(hello, key)?;
    if let Some(first) = first {
        link.send(&first)?;
    }
    let agreed = loop {
        let outcome = match link.receive() {
            Ok(message) => handshake.on_message(&message),
            Err(failed) => Err(failed),
        };
        match outcome {
            Ok(Step::Send(message)) => link.send(&message)?,
            Ok(Step::SendLast(message, agreed)) => {
                link.send(&message)?;
                break agreed;
            }
            Ok(Step::Done(agreed)) => break agreed,
            Err(Failed { reply, error }) => {
                if let Some(reply) = reply {
                    // The error at hand is the one to report, whether the peer hears of it or not.
                    let _ = link.send(&reply);
                }
                return Err(error);
            }
        }
    };
    stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_write_timeout(None))
        .map_err(HandshakeError::Io)?;
    Ok(agreed)
}

struct Link<'a> {
    stream: &'a mut TcpStream,
    deadline: Instant,
    patience: Duration,
}

impl Link<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), HandshakeError> {
        let left = self.left()?;
        self.stream.set_write_timeout(Some(left)).map_err(HandshakeError::Io)?;
        self.stream.write_all(message).map_err(|error| self.name(error))
    }

    /// One message, envelope and body.
    fn receive(&mut self) -> Result<Vec<u8>, Failed> {
        let mut message = vec![0; ENVELOPE_LEN];
        self.fill(&mut message)?;
        let head = message.first_chunk().ok_or(HandshakeError::Malformed("cut short"))?;
        // A bad envelope goes to the state machine as it is, which knows what to reply.
        if let Ok((_, len)) = envelope(head) {
            message.resize(ENVELOPE_LEN + len, 0);
            self.fill(&mut message[ENVELOPE_LEN..])?;
        }
        Ok(message)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<(), HandshakeError> {
        while !bytes.is_empty() {
            let left = self.left()?;
            self.stream.set_read_timeout(Some(left)).map_err(HandshakeError::Io)?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(HandshakeError::Closed),
                Ok(len) => bytes = &mut bytes[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.name(error)),
            }
        }
        Ok(())
    }

    /// Time left; the whole handshake has one deadline, so a peer cannot stretch it byte by byte.
    fn left(&self) -> Result<Duration, HandshakeError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(HandshakeError::Silent(self.patience)) } else { Ok(left) }
    }

    fn name(&self, error: io::Error) -> HandshakeError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => HandshakeError::Silent(self.patience),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => HandshakeError::Closed,
            _ => HandshakeError::Io(error),
        }
    }
}
