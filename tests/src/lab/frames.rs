//! Frames seen on a cable.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Counts frames that leave by an interface with a given sender, from the moment it is opened.
#[derive(Debug)]
pub struct FrameWatch {
    socket: OwnedFd,
    sender: [u8; 6],
    seen: u64,
}

impl FrameWatch {
    /// Opens a packet socket on an interface of this thread's namespace.
    ///
    /// # Errors
    /// Without the right to, or when there is no such interface.
    pub fn open(interface: &str, sender: [u8; 6]) -> io::Result<Self> {
        let socket = packet_socket(interface)?;
        Ok(Self { socket, sender, seen: 0 })
    }

    /// How many frames of that sender have left since it was opened.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn count(&mut self) -> io::Result<u64> {
        let mut head = [0u8; 14];
        while let Some((len, direction)) = receive(&self.socket, &mut head)? {
            // What comes in from the client's side in the guest's name is the other host's.
            if direction == libc::PACKET_OUTGOING && len >= 12 && head[6..12] == self.sender {
                self.seen += 1;
            }
        }
        Ok(self.seen)
    }
}

/// A non-blocking packet socket on one interface that sees all frames.
pub(crate) fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let name = CString::new(interface)?;
    // SAFETY: takes no pointers.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the name is zero-terminated.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zero is an address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index as i32;
    // SAFETY: the address is valid for the length given.
    let bound = unsafe {
        libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Takes one frame: bytes put into the buffer, and which way it went. `None` when none is waiting.
pub(crate) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, u8)>> {
    loop {
        // SAFETY: all zero is an address.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: buffer and address are valid for the lengths given.
        let got = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        if got >= 0 {
            return Ok(Some((got as usize, from.sll_pkttype)));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}
