//! The control socket: how a running side is asked for its status and told to fail over.
//!
//! A Unix stream socket, mode 0600. A client sends one JSON object a line, `{"cmd":"status"}` or
//! `{"cmd":"failover"}`, and gets one line back for each, in order: `{"status":{…}}`, `{"done":"…"}` or
//! `{"error":"…"}`. The server is one thread of its own that never waits for a client; a connection that is idle for five seconds is
//! closed.

mod client;
mod listener;
mod pretty;
mod server;
mod status;

use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError};
pub use pretty::Pretty;
pub use server::{ServeError, Server};
pub use status::{Digest, Lag, LogKind, OutputDelay, OutputStage, Peer, Role, Status};

/// Longest request line in bytes, end of line included.
pub const LONGEST_REQUEST: usize = 4_096;

/// What the socket's clients ask. Both are called on the control thread; they may take a lock for a
/// moment but must not wait for the guest or the network.
pub trait StatusSource: Send + Sync {
    /// The state of this side now.
    fn status(&self) -> Status;

    /// Starts a deliberate switch to the other side, and says in a sentence what will happen.
    ///
    /// # Errors
    /// A sentence for the user: why this side cannot hand over now.
    fn failover(&self) -> Result<String, String>;
}

/// A request, one line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
pub enum Request {
    /// Asks for the [`Status`].
    Status,
    /// Asks for [`StatusSource::failover`].
    Failover,
}

/// The answer, one line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// The request was carried out, or has begun.
    Done(String),
    /// It was not, and why.
    Error(String),
}

#[cfg(test)]
mod tests;
