//! Where the stand-in's guest lives.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{MISDEED, Misdeed, ROOM};
use crate::lab::{GUEST, Lab, Namespace, guest_mac};
use crate::process::{Launch, Process};

/// The sides' end of the room's cable.
pub(super) const DOOR: &str = "door";

/// A namespace with the guest's address, and a redis-server in it.
#[derive(Debug)]
pub struct Room {
    _server: Process,
    namespace: Namespace,
}

impl Room {
    /// Opens a new room, with an empty server.
    ///
    /// # Errors
    /// Without redis-server.
    pub fn new(lab: &Lab, directory: &Path) -> anyhow::Result<Self> {
        let namespace = lab.annexe('g')?;
        let mac = guest_mac();
        namespace.batch(&format!(
            "link add eth0 address {mac} type veth peer name {DOOR}\n\
             address add {GUEST}/24 dev eth0\nlink set eth0 up\nlink set {DOOR} up\n"
        ))?;
        // Whoever carries frames from the door carries them as they are: with their checksums.
        namespace.enter(|| checksums_in_software("eth0"))?.context("cannot set up the room's card")?;
        let server = Launch::new("redis", Path::new("redis-server"))
            .args(["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"])
            .args(["--dir".as_ref(), directory.as_os_str()])
            .inside(&namespace)
            .output(directory)?
            .start()
            .context("redis-server plays the guest: install redis-server")?;
        let room = Self { _server: server, namespace };
        room.wait()?;
        Ok(room)
    }

    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.namespace.enter(|| std::net::TcpStream::connect((GUEST, 6379)))?.is_err() {
            if Instant::now() > deadline {
                bail!("redis-server does not answer in its room");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Tells a side where the room is, and how to misbehave.
    #[must_use]
    pub fn equip(&self, launch: Launch, misdeed: Option<Misdeed>) -> Launch {
        let launch = launch.env(ROOM, self.namespace.path());
        match misdeed {
            Some(misdeed) => launch.env(MISDEED, misdeed.name()),
            None => launch,
        }
    }
}

/// Makes the kernel finish the checksums of what it sends by an interface, and so its segments too.
fn checksums_in_software(interface: &str) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command: ETHTOOL_STXCSUM, data: 0 };
    // SAFETY: all zero is a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the request names an interface and a command of eight bytes; both outlive the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
