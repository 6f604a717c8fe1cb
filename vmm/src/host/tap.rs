//! Tap devices, and the frames that tell switches where a card now is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::config::MacAddress;

/// Where taps are made.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// Bytes of the longest frame that a tap hands out: an Ethernet header, a VLAN tag and the largest MTU.
pub const LONGEST_FRAME: usize = 65_535 + 18;

/// Bytes of an ARP or RARP frame, without padding.
pub const ARP_FRAME: usize = 42;

/// Why a tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open {TUN_DEVICE}: {}", device_hint(.0))]
    Device(#[source] io::Error),
    /// No device can have this name.
    #[error("{0:?} cannot name a tap: 1 to 15 bytes")]
    Name(String),
    /// There is no such tap.
    #[error("there is no tap {0}; make it with: ip tuntap add dev {0} mode tap && ip link set {0} up")]
    Absent(String),
    /// The kernel refuses: no right to it, in use, not a tap.
    #[error("cannot attach to tap {name}: {}", hint(source))]
    Attach {
        /// The tap.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn device_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "run as root, or with CAP_NET_ADMIN and a right to the device",
        _ => "load it with: modprobe tun",
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "run as root or with CAP_NET_ADMIN, or give the tap to this user",
        Some(libc::EBUSY) => "another process uses it",
        Some(libc::EINVAL) => "a device of that name exists and is not a tap with one queue",
        _ => "the kernel refused",
    }
}

/// An attached tap. Frames have no header of any kind in front; reads and writes never block.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Attaches to a tap that exists.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be had; each error says what to do.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let index = interface_name(name)?;
        // SAFETY: the name is zero-terminated.
        if unsafe { libc::if_nametoindex(index.as_ptr()) } == 0 {
            return Err(TapError::Absent(name.to_owned()));
        }
        Self::attach(name, index)
    }

    /// Attaches to a tap, making it when there is none; one made here goes away when it is dropped.
    ///
    /// # Errors
    /// When it cannot be had; each error says what to do.
    pub fn open_or_create(name: &str) -> Result<Self, TapError> {
        Self::attach(name, interface_name(name)?)
    }

    fn attach(name: &str, interface: [libc::c_char; libc::IFNAMSIZ]) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(TapError::Device)?;
        let request = libc::ifreq {
            ifr_name: interface,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI) as i16 },
        };
        // SAFETY: TUNSETIFF reads one ifreq.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } < 0 {
            return Err(TapError::Attach { name: name.to_owned(), source: io::Error::last_os_error() });
        }
        Ok(Self { file, name: name.to_owned() })
    }

    /// A stand-in: a file that takes and gives whole frames, as a datagram socket does.
    #[cfg(test)]
    pub(crate) fn stand_in(file: File) -> Self {
        Self { file, name: "stand-in".to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes one frame, `None` when none is waiting. `buffer` should hold [`LONGEST_FRAME`] bytes: a
    /// longer frame is cut.
    ///
    /// # Errors
    /// When the tap is gone or down.
    pub fn read_frame(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends one frame. Says `false` when the tap has no room or is down: the frame is lost, as on any
    /// Ethernet.
    ///
    /// # Errors
    /// When the tap is gone, or the frame is shorter than a header.
    pub fn write_frame(&self, frame: &[u8]) -> io::Result<bool> {
        loop {
            match (&self.file).write(frame) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EIO | libc::ENOBUFS)) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn interface_name(name: &str) -> Result<[libc::c_char; libc::IFNAMSIZ], TapError> {
    let mut interface = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/', '%']) {
        return Err(TapError::Name(name.to_owned()));
    }
    for (to, from) in interface.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(interface)
}

/// A gratuitous ARP (RFC 5227, "announcement"): a broadcast request of `ip` for itself, upon which
/// neighbours correct their tables and switches learn the card's new port.
#[must_use]
pub fn gratuitous_arp(mac: MacAddress, ip: Ipv4Addr) -> [u8; ARP_FRAME] {
    const REQUEST: u16 = 1;
    address_frame(mac, 0x0806, REQUEST, ip, [0; 6])
}

/// A RARP request (RFC 903) of the card for its own address, as QEMU sends after a migration: it needs
/// no IP address, changes no neighbour's table, and teaches switches the card's new port.
#[must_use]
pub fn rarp_announcement(mac: MacAddress) -> [u8; ARP_FRAME] {
    const REVERSE_REQUEST: u16 = 3;
    address_frame(mac, 0x8035, REVERSE_REQUEST, Ipv4Addr::UNSPECIFIED, mac.bytes())
}

/// Broadcast of an ARP packet for Ethernet and IPv4, with sender and target protocol address the same.
fn address_frame(
    mac: MacAddress,
    ether_type: u16,
    operation: u16,
    ip: Ipv4Addr,
    target: [u8; 6],
) -> [u8; ARP_FRAME] {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let (ether_type, operation, ip) = (ether_type.to_be_bytes(), operation.to_be_bytes(), ip.octets());
    let mac = mac.bytes();
    let mut frame = [0; ARP_FRAME];
    let mut rest = &mut frame[..];
    let parts: [&[u8]; 9] =
        [&BROADCAST, &mac, &ether_type, &ETHERNET_AND_IPV4, &operation, &mac, &ip, &target, &ip];
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = after;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddress {
        "52:54:00:12:34:56".parse().unwrap()
    }

    fn hex(frame: &[u8]) -> String {
        frame.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_gratuitous_arp_asks_for_the_sender_itself() {
        assert_eq!(
            hex(&gratuitous_arp(mac(), Ipv4Addr::new(10, 99, 0, 10))),
            "ffffffffffff525400123456080600010800060400015254001234560a63000a0000000000000a63000a"
        );
    }

    #[test]
    fn a_rarp_announcement_names_the_card_twice_and_no_ip() {
        assert_eq!(
            hex(&rarp_announcement(mac())),
            "ffffffffffff525400123456803500010800060400035254001234560000000052540012345600000000"
        );
    }

    #[test]
    fn names_that_no_device_can_have_are_refused_before_the_kernel_sees_them() {
        for name in ["", "sixteen-letters!", "a/b", "tap%d", "a\0b"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name:?}");
        }
        let absent = Tap::open("tndm-absent").unwrap_err().to_string();
        assert!(absent.contains("ip tuntap add dev tndm-absent mode tap"), "{absent}");
    }

    /// Frames pass both ways, in a network namespace of this thread's own.
    #[test]
    fn frames_pass_through_a_tap() {
        // SAFETY: takes no pointers; it changes the namespace of this thread only, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            println!("skipped: no right to make a network namespace: {}", io::Error::last_os_error());
            return;
        }
        let tap = match Tap::open_or_create("tndm0") {
            Ok(tap) => tap,
            Err(error) => {
                println!("skipped: {error}");
                return;
            }
        };
        assert_eq!(tap.name(), "tndm0");
        assert!(!tap.write_frame(&rarp_announcement(mac())).unwrap(), "down, so lost");
        raise("tndm0");
        assert!(tap.write_frame(&rarp_announcement(mac())).unwrap());
        // A packet socket sends a frame out of the interface: the tap's reader gets it.
        let sent = [0x42u8; 60];
        send_raw("tndm0", &sent);
        let mut buffer = vec![0; LONGEST_FRAME];
        let mut seen = false;
        while let Some(len) = tap.read_frame(&mut buffer).unwrap() {
            seen |= buffer[..len] == sent;
        }
        assert!(seen, "the frame sent out of the interface is read from the tap");
        assert!(matches!(Tap::open("tndm0"), Err(TapError::Attach { .. })), "one reader only");
        drop(tap);
        assert!(matches!(Tap::open("tndm0"), Err(TapError::Absent(_))), "it goes with its maker");
    }

    fn raise(name: &str) {
        let mut request = libc::ifreq {
            ifr_name: interface_name(name).unwrap(),
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as i16 },
        };
        // SAFETY: SIOCSIFFLAGS reads one ifreq; the socket is closed again.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
            assert!(socket >= 0);
            assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request), 0);
            libc::close(socket);
        }
    }

    fn send_raw(name: &str, frame: &[u8]) {
        // SAFETY: plain socket calls on buffers that outlive them; the socket is closed again.
        unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            assert!(socket >= 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = libc::if_nametoindex(interface_name(name).unwrap().as_ptr()) as i32;
            address.sll_halen = 6;
            let sent = libc::sendto(
                socket,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            );
            assert_eq!(sent, frame.len() as isize);
            libc::close(socket);
        }
    }
}
