//! One connection of the client: bytes out, replies in, and never a wait.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::ledger::{Ledger, Violation};
use super::resp::{NotResp, Parser, Reply};
use crate::random::Random;

/// After a loss, before the next try.
const RETRY: Duration = Duration::from_millis(50);
/// A paced connection stops sending at so many requests without a reply.
const MOST_OUTSTANDING: usize = 512;

/// How a connection decides when to send.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rhythm {
    /// So many requests without a reply, always.
    Busy(usize),
    /// One request each time.
    Paced(Duration),
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("closed by the server")]
    Closed,
    #[error(transparent)]
    NotResp(#[from] NotResp),
}

#[derive(Debug)]
pub(super) struct Connection {
    name: String,
    epoch: u32,
    server: SocketAddrV4,
    rhythm: Rhythm,
    stream: Option<TcpStream>,
    /// Next try to connect, or next request of a paced connection.
    due: Instant,
    outgoing: Vec<u8>,
    parser: Parser,
    pub(super) ledger: Ledger,
    /// Ledgers of connections that were lost.
    pub(super) closed: Vec<Ledger>,
    pub(super) lost: u64,
}

impl Connection {
    pub(super) fn new(name: String, server: SocketAddrV4, rhythm: Rhythm, first: Instant) -> Self {
        Self {
            ledger: Ledger::new(format!("{name}.0")),
            name,
            epoch: 0,
            server,
            rhythm,
            stream: None,
            due: first,
            outgoing: Vec::new(),
            parser: Parser::default(),
            closed: Vec::new(),
            lost: 0,
        }
    }

    /// What to poll for: nothing while there is no stream.
    pub(super) fn poll_entry(&self) -> libc::pollfd {
        let fd = self.stream.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let out = if self.outgoing.is_empty() { 0 } else { libc::POLLOUT };
        libc::pollfd { fd, events: libc::POLLIN | out, revents: 0 }
    }

    /// When it next wants to do something by itself.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.stream.is_none() || matches!(self.rhythm, Rhythm::Paced(_))).then_some(self.due)
    }

    /// Sends what is to be sent now. `more`: whether new requests may be made.
    pub(super) fn send(&mut self, now: Instant, more: bool, random: &mut Random) {
        if self.stream.is_none() {
            if !more || now < self.due {
                return;
            }
            match connect(self.server) {
                Ok(stream) => {
                    self.stream = Some(stream);
                    self.due = now;
                }
                Err(_) => {
                    self.due = now + RETRY;
                    return;
                }
            }
        }
        if more {
            match self.rhythm {
                Rhythm::Busy(depth) => {
                    while self.ledger.outstanding() < depth {
                        self.ledger.next(random, &mut self.outgoing);
                    }
                }
                Rhythm::Paced(pace) => {
                    if now >= self.due {
                        if self.ledger.outstanding() < MOST_OUTSTANDING {
                            self.ledger.next(random, &mut self.outgoing);
                        }
                        // No catching up after a pause of our own: a burst is not paced.
                        self.due = (self.due + pace).max(now);
                    }
                }
            }
        }
        if let Err(lost) = self.flush() {
            self.lose(now, &lost);
        }
    }

    fn flush(&mut self) -> Result<(), Lost> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while !self.outgoing.is_empty() {
            match stream.write(&self.outgoing) {
                Ok(0) => return Err(Lost::Closed),
                Ok(written) => drop(self.outgoing.drain(..written)),
                // Not connected: the handshake is under way.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
                {
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has come; gives each reply's judgement to `judge`. Whether there was a reply.
    pub(super) fn receive(&mut self, now: Instant, mut judge: impl FnMut(Violation)) -> bool {
        let mut any = false;
        if let Err(lost) = self.read(|ledger, reply| {
            any = true;
            if let Err(violation) = ledger.reply(reply) {
                judge(violation);
            }
        }) {
            self.lose(now, &lost);
        }
        any
    }

    fn read(&mut self, mut each: impl FnMut(&mut Ledger, &Reply)) -> Result<(), Lost> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let mut buffer = [0; 16 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Err(Lost::Closed),
                Ok(len) => {
                    self.parser.push(&buffer[..len]);
                    while let Some(reply) = self.parser.take()? {
                        each(&mut self.ledger, &reply);
                    }
                    if len < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) =>
                {
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A connection that never had a reply is not lost: nobody was there yet.
    fn lose(&mut self, now: Instant, _why: &Lost) {
        self.lost += u64::from(self.ledger.acked() > 0);
        self.stream = None;
        self.due = now + RETRY;
        self.outgoing.clear();
        self.parser = Parser::default();
        self.epoch += 1;
        let fresh = Ledger::new(format!("{}.{}", self.name, self.epoch));
        self.closed.push(std::mem::replace(&mut self.ledger, fresh));
    }

    /// Whether every request has its reply, or never will.
    pub(super) fn settled(&self) -> bool {
        self.stream.is_none() || self.ledger.outstanding() == 0
    }
}

/// Begins to connect and does not wait for it.
fn connect(server: SocketAddrV4) -> io::Result<TcpStream> {
    // SAFETY: takes no pointers.
    let fd = unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: server.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(server.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is valid for the length given.
    let connected = unsafe {
        libc::connect(fd, (&raw const address).cast(), size_of::<libc::sockaddr_in>() as libc::socklen_t)
    };
    if connected < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}
