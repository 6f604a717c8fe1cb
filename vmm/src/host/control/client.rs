//! The client: what `tandem status` and `tandem failover` speak through.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Reply, Request, Status};

/// A side that does not answer within this is not going to.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest reply in bytes.
const LONGEST_REPLY: u64 = 4 << 20;

/// Why a side did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error("no control socket at {0}: is the VM running, and is this [control] socket in its config?")]
    Absent(PathBuf),
    /// A socket file without a listener.
    #[error("nobody listens on {0}: the tandem that made it has ended")]
    Stale(PathBuf),
    /// Something else is there.
    #[error("{0} is no control socket; give the path that [control] socket names in the config")]
    Other(PathBuf),
    /// The socket cannot be used.
    #[error("cannot ask {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It answers, but not in our language.
    #[error("{path} answered what this version of tandem does not understand")]
    Reply {
        /// The socket.
        path: PathBuf,
        /// Where it failed.
        #[source]
        source: serde_json::Error,
    },
    /// It closed the connection or sent the wrong kind of answer.
    #[error("{0} did not answer the question")]
    Unanswered(PathBuf),
    /// It refused.
    #[error("refused: {0}")]
    Refused(String),
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.file_type().is_socket())
}

/// A connection to a running side.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to a control socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let io_error = |source| ClientError::Io { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ClientError::Absent(path.to_owned()),
            io::ErrorKind::ConnectionRefused if is_socket(path) => ClientError::Stale(path.to_owned()),
            io::ErrorKind::ConnectionRefused => ClientError::Other(path.to_owned()),
            _ => io_error(source),
        })?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io_error)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(io_error)?;
        Ok(Self { stream: BufReader::new(stream), path: path.to_owned() })
    }

    /// Asks for the status.
    ///
    /// # Errors
    /// When the side does not answer.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(Request::Status)? {
            Reply::Status(status) => Ok(*status),
            Reply::Error(why) => Err(ClientError::Refused(why)),
            Reply::Done(_) => Err(ClientError::Unanswered(self.path.clone())),
        }
    }

    /// Asks the side to hand over; returns what it says will happen.
    ///
    /// # Errors
    /// When it refuses or does not answer.
    pub fn failover(&mut self) -> Result<String, ClientError> {
        match self.ask(Request::Failover)? {
            Reply::Done(what) => Ok(what),
            Reply::Error(why) => Err(ClientError::Refused(why)),
            Reply::Status(_) => Err(ClientError::Unanswered(self.path.clone())),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        let io_error = |source| ClientError::Io { path: self.path.clone(), source };
        let reply_error = |source| ClientError::Reply { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(&request).map_err(reply_error)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(io_error)?;
        line.clear();
        (&mut self.stream).take(LONGEST_REPLY).read_until(b'\n', &mut line).map_err(|source| match source
            .kind()
        {
            io::ErrorKind::WouldBlock => {
                io_error(io::Error::new(io::ErrorKind::TimedOut, "no answer in 5 s"))
            }
            _ => io_error(source),
        })?;
        if line.last() != Some(&b'\n') {
            return Err(ClientError::Unanswered(self.path.clone()));
        }
        serde_json::from_slice(&line).map_err(reply_error)
    }
}
