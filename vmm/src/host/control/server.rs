//! The server: one thread, one `poll`, bounded buffers, no waiting for any client.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::listener::Listener;
use super::{LONGEST_REQUEST, Reply, Request, StatusSource};
use crate::host::shutdown::Shutdown;

/// Most clients at a time; one more takes the place of the one that has been idle longest.
const MOST_CLIENTS: usize = 16;
/// A client that has not sent a request, or taken its reply, for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// Replies that a client has not taken yet, in bytes; beyond it no further request of it is read.
const LARGEST_BACKLOG: usize = 256 * 1024;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process listens there.
    #[error("{0} is in use by another tandem; give this side its own with --control PATH")]
    Taken(PathBuf),
    /// Something else has the name.
    #[error("{0} exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The kernel refuses.
    #[error("cannot listen on the control socket {path}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the control thread")]
    Thread(#[source] io::Error),
}

/// A running server. Dropping it ends the thread and removes the socket's file.
#[derive(Debug)]
pub struct Server {
    stop: Shutdown,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `path` and answers from `source` until the server is dropped.
    ///
    /// # Errors
    /// When the path is taken or cannot be bound.
    pub fn start(path: &Path, source: Arc<dyn StatusSource>) -> Result<Self, ServeError> {
        let listener = Listener::bind(path)?;
        let stop = Shutdown::new().map_err(ServeError::Thread)?;
        let until = stop.clone();
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || serve(&listener, &*source, &until))
            .map_err(ServeError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

fn serve(listener: &Listener, source: &dyn StatusSource, stop: &Shutdown) {
    let mut clients: Vec<Connection> = Vec::new();
    while !stop.requested() {
        let mut polls = vec![
            interest(stop.as_raw_fd(), libc::POLLIN),
            interest(listener.socket().as_raw_fd(), libc::POLLIN),
        ];
        polls.extend(clients.iter().map(|client| interest(client.stream.as_raw_fd(), client.wants())));
        let timeout = if clients.is_empty() { -1 } else { 250 };
        // SAFETY: the array outlives the call, with its own length.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout) };
        if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            tracing::error!(error = %io::Error::last_os_error(), "the control socket stops");
            return;
        }
        let mut revents = polls[2..].iter().map(|poll| poll.revents);
        clients.retain_mut(|client| {
            let woken = revents.next().is_some_and(|events| events != 0);
            (!woken || client.step(source)) && client.last_moved.elapsed() < PATIENCE
        });
        if polls[1].revents != 0 {
            match listener.socket().accept() {
                Ok((stream, _)) => {
                    if clients.len() == MOST_CLIENTS {
                        drop_idlest(&mut clients);
                    }
                    clients.extend(Connection::new(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    // Out of descriptors: do not spin on it.
                    let _ = stop.wait(Duration::from_millis(100));
                }
            }
        }
    }
}

fn drop_idlest(clients: &mut Vec<Connection>) {
    let idlest = clients.iter().enumerate().min_by_key(|(_, client)| client.last_moved);
    if let Some((index, _)) = idlest {
        clients.swap_remove(index);
    }
}

fn interest(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// One client.
struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    replies: Vec<u8>,
    last_moved: Instant,
    closing: bool,
}

impl Connection {
    fn new(stream: UnixStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        let (received, replies) = (Vec::new(), Vec::new());
        Some(Self { stream, received, replies, last_moved: Instant::now(), closing: false })
    }

    fn reads(&self) -> bool {
        !self.closing && self.replies.len() < LARGEST_BACKLOG
    }

    fn wants(&self) -> libc::c_short {
        let read = if self.reads() { libc::POLLIN } else { 0 };
        let write = if self.replies.is_empty() { 0 } else { libc::POLLOUT };
        read | write
    }

    /// Reads, answers and writes what is possible now. Says whether the connection goes on.
    fn step(&mut self, source: &dyn StatusSource) -> bool {
        if self.reads() && !self.receive() {
            return false;
        }
        while self.replies.len() < LARGEST_BACKLOG {
            let Some(end) = self.received.iter().position(|&byte| byte == b'\n') else { break };
            let line: Vec<u8> = self.received.drain(..=end).collect();
            self.answer(&line, source);
            if !self.send() {
                return false;
            }
        }
        if self.received.len() >= LONGEST_REQUEST {
            self.reply(&Reply::Error(format!("a request has at most {LONGEST_REQUEST} bytes")));
            self.closing = true;
        }
        self.send() && !(self.closing && self.replies.is_empty())
    }

    fn receive(&mut self) -> bool {
        let mut buffer = [0; LONGEST_REQUEST];
        // Never more than one longest request is kept.
        let room = LONGEST_REQUEST.saturating_sub(self.received.len());
        if room == 0 {
            return true;
        }
        match self.stream.read(&mut buffer[..room]) {
            Ok(0) => self.closing = true,
            Ok(len) => {
                self.received.extend_from_slice(&buffer[..len]);
                self.last_moved = Instant::now();
            }
            Err(error) => return would_wait(&error),
        }
        true
    }

    fn answer(&mut self, line: &[u8], source: &dyn StatusSource) {
        let reply = match serde_json::from_slice(line) {
            Ok(Request::Status) => Reply::Status(Box::new(source.status())),
            Ok(Request::Failover) => {
                tracing::info!("failover asked for on the control socket");
                source.failover().map_or_else(Reply::Error, Reply::Done)
            }
            Err(error) => Reply::Error(format!("not a request: {error}; send {{\"cmd\":\"status\"}}")),
        };
        self.reply(&reply);
    }

    fn reply(&mut self, reply: &Reply) {
        match serde_json::to_vec(reply) {
            Ok(line) => {
                self.replies.extend_from_slice(&line);
                self.replies.push(b'\n');
            }
            Err(error) => {
                tracing::error!(%error, "a reply cannot be encoded");
                self.closing = true;
            }
        }
    }

    fn send(&mut self) -> bool {
        while !self.replies.is_empty() {
            match self.stream.write(&self.replies) {
                Ok(0) => return false,
                Ok(len) => {
                    self.replies.drain(..len);
                    self.last_moved = Instant::now();
                }
                Err(error) => return would_wait(&error),
            }
        }
        true
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
