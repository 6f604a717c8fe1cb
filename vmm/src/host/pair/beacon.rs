//! Heartbeats by datagram.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use tandem_logchan::handshake::{PreSharedKey, Side};
use tandem_logchan::heartbeat::{Freshness, Heartbeat as Datagram, HeartbeatKey};

use super::clock::now;
use crate::role::Moment;
use crate::role::event::{Heartbeat, Standing};

/// Numbers of the standings in a datagram.
mod number {
    pub(super) const PAIRED: u8 = 0;
    pub(super) const WANTS_HAND_OVER: u8 = 1;
    pub(super) const HANDED_OVER: u8 = 2;
    pub(super) const CLAIMING: u8 = 3;
    pub(super) const WON: u8 = 4;
    pub(super) const LEAVING: u8 = 5;
}

/// The datagram socket of one side.
#[derive(Debug)]
pub(super) struct Beacon {
    socket: UdpSocket,
    peer: SocketAddr,
    side: Side,
    identity: [u8; 8],
    key: HeartbeatKey,
    counter: u64,
    freshness: Freshness,
    /// Datagrams that were no heartbeats of the peer.
    pub(super) refused: u64,
}

impl Beacon {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(super) fn open(
        own: SocketAddr,
        peer: SocketAddr,
        side: Side,
        identity: [u8; 8],
        key: &PreSharedKey,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind(own)?;
        socket.set_nonblocking(true)?;
        // Starts at the clock, so that it rises over restarts.
        let counter = now().as_nanos();
        Ok(Self {
            socket,
            peer,
            side,
            identity,
            key: HeartbeatKey::new(key),
            counter,
            freshness: Freshness::default(),
            refused: 0,
        })
    }

    /// Sends a heartbeat. One that is lost is made up for by the next.
    pub(super) fn send(&mut self, beat: &Heartbeat) {
        self.counter += 1;
        let (standing, argument) = match beat.standing {
            Standing::Paired => (number::PAIRED, 0),
            Standing::WantsHandOver => (number::WANTS_HAND_OVER, 0),
            Standing::HandedOver { sequence } => (number::HANDED_OVER, sequence),
            Standing::Claiming => (number::CLAIMING, 0),
            Standing::Won => (number::WON, 0),
            Standing::Leaving => (number::LEAVING, 0),
        };
        let datagram = Datagram {
            side: self.side,
            standing,
            identity: self.identity,
            generation: beat.generation,
            counter: self.counter,
            stamp: beat.stamp.as_nanos(),
            echo: beat.echo.map_or(0, Moment::as_nanos),
            received: beat.received,
            argument,
        };
        if let Err(error) = self.socket.send_to(&datagram.encode(&self.key), self.peer) {
            tracing::trace!(%error, "a heartbeat was not sent");
        }
    }

    /// The next fresh heartbeat of the peer; `None` when nothing more waits.
    pub(super) fn receive(&mut self) -> Option<Heartbeat> {
        let mut buffer = [0; 256];
        loop {
            let len = match self.socket.recv_from(&mut buffer) {
                Ok((len, _)) => len,
                // An ICMP error of an earlier datagram: the peer is away, as will be noticed.
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted) =>
                {
                    continue;
                }
                Err(_) => return None,
            };
            match Datagram::decode(&buffer[..len], &self.key) {
                Ok(datagram) => match self.admit(&datagram) {
                    Some(beat) => return Some(beat),
                    None => self.refused += 1,
                },
                Err(error) => {
                    self.refused += 1;
                    tracing::debug!(%error, "a datagram was refused");
                }
            }
        }
    }

    fn admit(&mut self, datagram: &Datagram) -> Option<Heartbeat> {
        if datagram.identity != self.identity || datagram.side == self.side || !self.freshness.admit(datagram)
        {
            return None;
        }
        let standing = match datagram.standing {
            number::PAIRED => Standing::Paired,
            number::WANTS_HAND_OVER => Standing::WantsHandOver,
            number::HANDED_OVER => Standing::HandedOver { sequence: datagram.argument },
            number::CLAIMING => Standing::Claiming,
            number::WON => Standing::Won,
            number::LEAVING => Standing::Leaving,
            _ => return None,
        };
        Some(Heartbeat {
            generation: datagram.generation,
            stamp: Moment::from_nanos(datagram.stamp),
            echo: (datagram.echo != 0).then(|| Moment::from_nanos(datagram.echo)),
            received: datagram.received,
            standing,
        })
    }
}

impl AsRawFd for Beacon {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
