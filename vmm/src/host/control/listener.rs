//! The socket file: made with the right mode from its first moment, taken over when it is stale,
//! removed when it is still ours.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::server::ServeError;

/// A listening socket and its file.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Listener {
    /// Binds `path`, which no other process may be listening on. A socket file that nobody listens on
    /// is replaced; any other file is left alone.
    pub(super) fn bind(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Bind { path: path.to_owned(), source };
        let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Such as /run/tandem after a boot. Only the last directory is made, and for this user only.
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let _lock = lock(directory).map_err(failed)?;
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(ServeError::NotASocket(path.to_owned()));
            }
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                Ok(_) => return Err(ServeError::Taken(path.to_owned())),
                Err(error) => return Err(failed(error)),
            }
        }
        let socket = bind_private(path).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) })
    }

    pub(super) fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

/// Locks a directory until the file is dropped: two processes that both find a socket stale must not both
/// replace it. Gives up after two seconds, should somebody hold the lock for long.
fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    for _ in 0..200 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another process has locked its directory"))
}

/// Makes a non-blocking listening socket whose file is never open to others, not even for a moment:
/// Linux gives the file the mode of the socket's own inode.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // SAFETY: zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket's path has 1 to 107 bytes"));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the address outlives the call and its length is its own.
    let bound = unsafe {
        libc::fchmod(fd.as_raw_fd(), 0o600) == 0
            && libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            ) == 0
            && libc::listen(fd.as_raw_fd(), 16) == 0
    };
    if bound { Ok(fd.into()) } else { Err(io::Error::last_os_error()) }
}
