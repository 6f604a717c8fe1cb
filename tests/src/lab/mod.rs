//! Two hosts and a client on one machine: network namespaces, joined by cables that can be cut.
//!
//! ```text
//!   client (C)            br0 10.77.0.1/24
//!                        to-p          to-b
//!                         │             │
//!                       uplink        uplink
//!   primary's host (P)   br0           br0   backup's host (B)
//!                        tap0          tap0
//!                        log ───────── log
//!                  10.99.0.1/24   10.99.0.2/24
//! ```
//!
//! Nothing is connected to the machine's own network.

mod cards;
pub(crate) mod frames;
mod namespace;
mod roce;
mod sweep;

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

pub use frames::FrameWatch;
pub use namespace::{Namespace, move_this_thread_to};
pub use roce::RdmaDevices;
pub use sweep::sweep;

/// The tap of either host, which its side attaches to.
pub const TAP: &str = "tap0";
/// The address of the guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The card of the guest.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// The primary's end of the log's cable.
pub const PRIMARY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// The backup's end of the log's cable.
pub const BACKUP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// The address of the guest's card, as text.
#[must_use]
pub fn guest_mac() -> String {
    GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":")
}

/// Which of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Where the primary starts.
    Primary,
    /// Where the backup starts.
    Backup,
}

/// The namespaces and their cables; removed when dropped.
#[derive(Debug)]
pub struct Lab {
    client: Namespace,
    primary: Namespace,
    backup: Namespace,
    prefix: String,
    lent: Vec<cards::Lent>,
}

const BRIDGE: &str =
    "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n";

impl Lab {
    /// Sets everything up, after removing what labs of dead processes left behind.
    ///
    /// # Errors
    /// Without root, `ip`, or `/dev/net/tun`.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let prefix =
            format!("{}{}-{}", sweep::PREFIX, std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let make = |letter| Namespace::create(&format!("{prefix}-{letter}"));
        let lab =
            Self { client: make('c')?, primary: make('p')?, backup: make('b')?, prefix, lent: Vec::new() };
        lab.connect().context("cannot build the lab's network")?;
        Ok(lab)
    }

    fn connect(&self) -> anyhow::Result<()> {
        let (p, b) = (self.primary.name(), self.backup.name());
        self.client.batch(&format!(
            "{BRIDGE}address add 10.77.0.1/24 dev br0\n\
             link add to-p type veth peer name uplink netns {p}\n\
             link add to-b type veth peer name uplink netns {b}\n\
             link set to-p master br0 up\n\
             link set to-b master br0 up\n"
        ))?;
        let host = format!(
            "{BRIDGE}tuntap add dev {TAP} mode tap\n\
             link set {TAP} master br0 up\n\
             link set uplink master br0 up\n"
        );
        self.primary.batch(&format!(
            "{host}link add log type veth peer name log netns {b}\n\
             address add {PRIMARY}/24 dev log\n\
             link set log up\n"
        ))?;
        self.backup.batch(&format!("{host}address add {BACKUP}/24 dev log\nlink set log up\n"))
    }

    /// Where the client lives.
    #[must_use]
    pub const fn client(&self) -> &Namespace {
        &self.client
    }

    /// Where a side lives.
    #[must_use]
    pub const fn host(&self, host: Host) -> &Namespace {
        match host {
            Host::Primary => &self.primary,
            Host::Backup => &self.backup,
        }
    }

    /// A further namespace that belongs to this lab by its name.
    ///
    /// # Errors
    /// As [`Namespace::create`].
    pub fn annexe(&self, letter: char) -> anyhow::Result<Namespace> {
        Namespace::create(&format!("{}-{letter}", self.prefix))
    }

    /// Cuts the cable between the hosts, or joins it again.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn log_link(&self, joined: bool) -> anyhow::Result<()> {
        self.primary.batch(if joined { "link set log up\n" } else { "link set log down\n" })
    }

    /// Cuts the cable between the clients and one host, or joins it again.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn client_link(&self, host: Host, joined: bool) -> anyhow::Result<()> {
        let cable = match host {
            Host::Primary => "to-p",
            Host::Backup => "to-b",
        };
        self.client.batch(&format!("link set {cable} {}\n", if joined { "up" } else { "down" }))
    }

    /// Makes it as new for another VM: joins every cable, and lets bridges and neighbours forget where the
    /// last one was.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn restore(&self) -> anyhow::Result<()> {
        let forget = |port| format!("link set {port} type bridge_slave fdb_flush\n");
        let host = [forget("uplink"), forget(TAP)].concat();
        self.primary.batch(&format!("link set log up\n{host}"))?;
        self.backup.batch(&format!("link set log up\n{host}"))?;
        let client = [forget("to-p"), forget("to-b")].concat();
        self.client.batch(&format!("link set to-p up\nlink set to-b up\n{client}neigh flush dev br0\n"))
    }

    /// Watches what leaves a host towards the clients in the guest's name.
    ///
    /// # Errors
    /// Without the right to packet sockets.
    pub fn watch_guest_frames(&self, host: Host) -> anyhow::Result<FrameWatch> {
        self.host(host).enter(|| FrameWatch::open("uplink", GUEST_MAC))?.context("cannot watch frames")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Why no lab can be built here; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    // SAFETY: takes no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Some("not root: network namespaces cannot be made".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun: {error}"));
    }
    std::process::Command::new("ip")
        .arg("-V")
        .output()
        .err()
        .map(|_| "ip is missing: install iproute2".to_owned())
}

/// Waits until no other lab of these tests runs on this machine; it has two cores.
///
/// # Errors
/// When the lock's file cannot be made.
pub fn alone() -> io::Result<impl Drop> {
    struct Lock(File);
    impl Drop for Lock {
        fn drop(&mut self) {
            // SAFETY: takes no pointers.
            unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
        }
    }
    let path = Path::new("/run/lock");
    let directory = if path.is_dir() { path.to_owned() } else { std::env::temp_dir() };
    let file = File::options().create(true).truncate(false).write(true).open(directory.join("tandem-lab"))?;
    // SAFETY: takes no pointers.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Lock(file))
}
