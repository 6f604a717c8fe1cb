//! From a connected stream to a channel: handshake, transport, encryption if agreed, both ends.
//!
//! The one place where the parts are put together. What comes out is boxed, so that callers need not
//! care whether the stream is encrypted.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

use crate::ack::AckState;
use crate::backup::{self, LogReader, LogReceiver};
use crate::checksum;
use crate::handshake::{self, Agreed, HandshakeError, Hello, PreSharedKey, Side};
use crate::primary::{AckReceiver, LogSender};
#[cfg(feature = "rdma")]
use crate::transport::rdma::{self, RdmaConfig};
use crate::transport::sealed::{SealedDuplex, SealedReceive, SealedSend};
use crate::transport::tcp::{self, TcpConfig};
use crate::transport::{Duplex, ReceiveHalf, SendHalf, TransportError};

/// What carries the log, once hands are shaken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The TCP stream itself.
    Tcp(TcpConfig),
    /// An RDMA connection between the stream's addresses.
    #[cfg(feature = "rdma")]
    Rdma(RdmaConfig),
}

impl From<TcpConfig> for Link {
    fn from(config: TcpConfig) -> Self {
        Self::Tcp(config)
    }
}

type Halves = (Box<dyn SendHalf>, Box<dyn ReceiveHalf>);

/// Why there is no channel on this stream.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The two sides do not agree.
    #[error("the peer and this side do not agree on a log channel")]
    Handshake(#[from] HandshakeError),
    /// The stream cannot be used.
    #[error("the log channel cannot be set up")]
    Transport(#[from] TransportError),
    /// The hello names the other side.
    #[error("this end of the channel is for the {0}")]
    WrongSide(Side),
}

/// The primary's ends.
#[derive(Debug)]
pub struct PrimaryEnds {
    /// For the vCPU thread.
    pub sender: LogSender<Box<dyn SendHalf>>,
    /// For the I/O thread.
    pub acks: AckReceiver<Box<dyn ReceiveHalf>>,
    /// For both, and whoever else wants to know.
    pub state: Arc<AckState>,
    /// What was agreed.
    pub agreed: Agreed,
}

/// The backup's ends.
#[derive(Debug)]
pub struct BackupEnds {
    /// For the receive thread.
    pub receiver: LogReceiver<Box<dyn Duplex>>,
    /// For the replay thread.
    pub reader: LogReader,
    /// What was agreed.
    pub agreed: Agreed,
}

/// Opens the primary's side of a channel on a connected stream, within `patience`.
///
/// # Errors
/// Any [`OpenError`]; the stream is closed.
pub fn primary(
    mut stream: TcpStream,
    hello: Hello,
    key: &PreSharedKey,
    link: &Link,
    patience: Duration,
) -> Result<PrimaryEnds, OpenError> {
    if hello.side != Side::Primary {
        return Err(OpenError::WrongSide(Side::Primary));
    }
    checksum::race();
    #[cfg_attr(not(feature = "rdma"), expect(unused_mut, reason = "RDMA moves the session on"))]
    let mut agreed = handshake::run(&mut stream, hello, key, patience)?;
    let (send, receive): Halves = match link {
        Link::Tcp(config) => {
            let (send, receive) = tcp::primary(stream, config)?;
            (Box::new(send), Box::new(receive))
        }
        #[cfg(feature = "rdma")]
        Link::Rdma(config) => {
            let (send, receive) = rdma::primary(stream, &mut agreed.keys, config)?;
            agreed.session = agreed.session.map(|_| agreed.keys.clone());
            (Box::new(send), Box::new(receive))
        }
    };
    let (send, receive): Halves = match &agreed.session {
        Some(session) => (
            Box::new(SealedSend::new(send, session.clone())),
            Box::new(SealedReceive::new(receive, session.clone())),
        ),
        None => (send, receive),
    };
    // Encrypted, bytes of the transport are not bytes of the log: only the backup can say what it has.
    let placing = receive.placed().is_some();
    let state = Arc::new(if placing { AckState::placing() } else { AckState::new() });
    Ok(PrimaryEnds {
        sender: LogSender::new(send, agreed.generation, state.clone()),
        acks: AckReceiver::new(receive, agreed.generation, state.clone()),
        state,
        agreed,
    })
}

/// Opens the backup's side of a channel on an accepted stream, within `patience`; received frames wait
/// in a ring of `ring_bytes`.
///
/// # Errors
/// Any [`OpenError`]; the stream is closed.
pub fn backup(
    mut stream: TcpStream,
    hello: Hello,
    key: &PreSharedKey,
    link: &Link,
    patience: Duration,
    ring_bytes: usize,
) -> Result<BackupEnds, OpenError> {
    if hello.side != Side::Backup {
        return Err(OpenError::WrongSide(Side::Backup));
    }
    checksum::race();
    #[cfg_attr(not(feature = "rdma"), expect(unused_mut, reason = "RDMA moves the session on"))]
    let mut agreed = handshake::run(&mut stream, hello, key, patience)?;
    let duplex: Box<dyn Duplex> = match link {
        Link::Tcp(config) => Box::new(tcp::backup(stream, config)?),
        #[cfg(feature = "rdma")]
        Link::Rdma(config) => {
            let duplex = rdma::backup(stream, &mut agreed.keys, config)?;
            agreed.session = agreed.session.map(|_| agreed.keys.clone());
            Box::new(duplex)
        }
    };
    let duplex: Box<dyn Duplex> = match &agreed.session {
        Some(session) => Box::new(SealedDuplex::new(duplex, session.clone())),
        None => duplex,
    };
    let (receiver, reader) = backup::pair(duplex, agreed.generation, ring_bytes);
    Ok(BackupEnds { receiver, reader, agreed })
}
