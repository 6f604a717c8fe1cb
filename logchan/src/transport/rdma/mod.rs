//! RDMA: the log is written into the backup's memory, acks and credits into the primary's.
//!
//! Each side registers a ring for what the peer sends. The sender writes the stream into it with
//! RDMA WRITE WITH IMMEDIATE, whose value says how many bytes: data, tail and notice in one packet if
//! they fit, ordered by the connection. No CPU of the receiver is on the way into its memory. What the
//! receiver has taken out it writes back, one-sided too, into a word at the sender: the credit.
//!
//! The handshake is TCP's, on a TCP connection between the same addresses: rdma_cm needs an IP network
//! on the same ports anyway, InfiniBand or RoCE, and in this way nothing of RDMA is open to anyone
//! before the handshake is over. Then the backup listens with rdma_cm for exactly one connection,
//! which must bring a token from the sealed session, and only when that stands do keys travel, sealed.
//! Keys belong to a protection domain of this one connection and are void when it ends.
//!
//! A dead peer is noticed by its kernel's farewell, by retries without an answer (about a second), and
//! before all by heartbeats.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::TransportError;
use super::buffer::SendBuffer;
use crate::frame::MAX_FRAME;
use crate::handshake::{Session, Side};

mod cm;
mod conn;
mod devices;
mod flow;
mod halves;
mod pingpong;
mod sender;
mod setup;
mod verbs;

pub use devices::{Port, ports};
pub use halves::{RdmaDuplex, RdmaReceive, RdmaSend};
pub use pingpong::{PingPong, loopback};

/// Bytes of the primary's ring for acks.
const ACK_RING: usize = 256 << 10;
/// Bytes of replies that may wait for credits.
const REPLY_ROOM: usize = 64 << 10;

/// How a receiving thread learns of what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It sleeps, and the device's interrupt wakes it up.
    Events,
    /// It looks for so long, then sleeps.
    Adaptive(Duration),
    /// It looks all the time. For a thread with a core of its own.
    Busy,
}

/// How an RDMA transport behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RdmaConfig {
    /// Bytes the sender buffers at most while the peer's ring is full; at least two frames of the
    /// largest size, whatever is asked for. All of it is pinned.
    pub send_buffer: usize,
    /// Bytes of the backup's ring, 64 KiB to 1 GiB. All of it is pinned.
    pub ring: usize,
    /// How a receiving thread learns of what came.
    pub completion: Completion,
    /// The primary counts on what the adapters have placed in the backup's memory: its waits end with that
    /// news, and [`super::ReceiveHalf::placed`] tells it.
    pub placed: bool,
    /// Patience with the peer while the connection is set up.
    pub patience: Duration,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self {
            send_buffer: 16 << 20,
            ring: 4 << 20,
            completion: Completion::Events,
            placed: false,
            patience: Duration::from_secs(5),
        }
    }
}

/// The primary's two halves, after the handshake on this stream, which is closed when the connection
/// stands.
///
/// # Errors
/// There is no RDMA device for the stream's addresses, or the peer does not play its part in time.
pub(crate) fn primary(
    mut stream: TcpStream,
    session: &mut Session,
    config: &RdmaConfig,
) -> Result<(RdmaSend, RdmaReceive), TransportError> {
    let buffer = SendBuffer::new(config.send_buffer.max(2 * MAX_FRAME));
    let conn = setup::connect(&mut stream, session, Side::Primary, ACK_RING, &buffer, config)?;
    let conn = Arc::new(conn);
    Ok((RdmaSend::new(Arc::clone(&conn), buffer), RdmaReceive::new(conn, config)?))
}

/// The backup's end, after the handshake on this stream.
///
/// # Errors
/// As [`primary`].
pub(crate) fn backup(
    mut stream: TcpStream,
    session: &mut Session,
    config: &RdmaConfig,
) -> Result<RdmaDuplex, TransportError> {
    let buffer = SendBuffer::new(REPLY_ROOM);
    let ring = config.ring.clamp(64 << 10, 1 << 30);
    let conn = setup::connect(&mut stream, session, Side::Backup, ring, &buffer, config)?;
    // Of its replies nobody needs to know.
    RdmaDuplex::new(Arc::new(conn), buffer, &RdmaConfig { placed: false, ..*config })
}

#[cfg(test)]
mod tests;
