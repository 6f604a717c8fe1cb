//! Tap devices, and the frames that tell switches where a card now is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::config::MacAddress;
use super::leased::LeaseEnd;
use crate::machine::output::Packet;
use crate::machine::virtio::net::QUEUE_SIZE;
use crate::machine::virtio::net::offload::{COMPLETE, HEADER_LEN, Offloads};

/// Where taps are made.
pub const TUN_DEVICE: &str = "/dev/net/tun";

/// Bytes of the longest packet that a tap hands out: a header, and a frame with its Ethernet header, a VLAN tag and the
/// largest MTU.
pub const LONGEST_PACKET: usize = HEADER_LEN + 65_535 + 18;

/// Parts of a packet at most: a chain is no longer than its queue.
const MOST_PARTS: usize = QUEUE_SIZE as usize + Packet::MORE_PARTS;

/// Bytes of an ARP or RARP frame, without padding.
const ARP_FRAME: usize = 42;

/// Bytes of an ARP or RARP packet.
pub const ARP_PACKET: usize = HEADER_LEN + ARP_FRAME;

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

/// An attached tap. Its packets are those of the machine's network devices ([`offload`](crate::machine::virtio::net::offload)):
/// a header, and a frame. Reads and writes never block.
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
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let request = libc::ifreq {
            ifr_name: interface,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as i16 },
        };
        let refused = || TapError::Attach { name: name.to_owned(), source: io::Error::last_os_error() };
        // SAFETY: TUNSETIFF reads one ifreq.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } < 0 {
            return Err(refused());
        }
        let header = HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) } < 0 {
            return Err(refused());
        }
        let tap = Self { file, name: name.to_owned() };
        // A tap keeps what its last user could do.
        tap.set_offloads(Offloads::NONE)
            .map_err(|source| TapError::Attach { name: name.to_owned(), source })?;
        Ok(tap)
    }

    /// What the reader of this tap can do with packets: the kernel leaves it to the reader from now on. Packets that wait
    /// already stay as they are.
    ///
    /// # Errors
    /// When the kernel cannot leave it to anybody.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let table = [
            (Offloads::CHECKSUM, libc::TUN_F_CSUM),
            (Offloads::TSO4, libc::TUN_F_TSO4),
            (Offloads::TSO6, libc::TUN_F_TSO6),
            (Offloads::ECN, libc::TUN_F_TSO_ECN),
        ];
        let set = table.iter().filter(|(offload, _)| offloads.has(*offload));
        let set = set.fold(0, |flags, (_, flag)| flags | flag);
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        let done =
            unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(set)) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A stand-in: a file that takes and gives whole packets, as a datagram socket does.
    #[cfg(test)]
    pub(crate) fn stand_in(file: File) -> Self {
        Self { file, name: "stand-in".to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes one packet, `None` when none is waiting. `buffer` should hold [`LONGEST_PACKET`] bytes: a
    /// longer packet is cut.
    ///
    /// # Errors
    /// When the tap is gone or down.
    pub fn read_packet(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Tap::set_offloads`]; a failure is told to the operator: the guest has long packets cut for it then, or too few.
    pub fn follow(&self, offloads: Offloads) {
        if let Err(error) = self.set_offloads(offloads) {
            tracing::warn!(tap = self.name, %error, "the kernel cannot leave to the guest what the guest can do");
        }
    }

    /// Sends one packet. Says `false` when the tap has no room or is down: the packet is lost, as on any
    /// Ethernet.
    ///
    /// # Errors
    /// When the tap is gone, or there is no packet in these bytes: too short, or a header that the frame belies.
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<bool> {
        sent(|| (&self.file).write(packet))
    }

    /// The same if the lease holds, and when that was looked at, in nanoseconds of the local clock; a packet that cannot be sent is
    /// lost. `None`: the lease has ended, and nothing was sent.
    pub fn write_leased(&self, packet: &[u8], lease: &LeaseEnd) -> Option<u64> {
        loop {
            let made = lease.write(self.file.as_fd(), packet)?;
            if let Some(fate) = fate(made.result) {
                if let Err(error) = fate {
                    tracing::debug!(tap = self.name, %error, "a packet was lost");
                }
                return Some(made.at);
            }
        }
    }

    /// The same as [`Tap::write_packet`] from where the guest has it, without a copy of ours.
    ///
    /// # Errors
    /// As [`Tap::write_packet`].
    pub fn send(&self, packet: &Packet<'_>) -> io::Result<bool> {
        let mut parts = [const { MaybeUninit::<libc::iovec>::uninit() }; MOST_PARTS];
        let mut count = 0;
        packet.for_each_part(|part| {
            if let Some(entry) = parts.get_mut(count) {
                entry.write(libc::iovec { iov_base: part.start.cast_mut().cast(), iov_len: part.len });
            }
            count += 1;
        });
        if count > parts.len() {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        sent(|| {
            // SAFETY: that many entries are written; their bytes are there as long as the packet, and are only read.
            let len =
                unsafe { libc::writev(self.file.as_raw_fd(), parts.as_ptr().cast(), count as libc::c_int) };
            usize::try_from(len).map_err(|_| io::Error::last_os_error())
        })
    }
}

/// What became of a packet that `write` hands to a tap.
fn sent(write: impl Fn() -> io::Result<usize>) -> io::Result<bool> {
    loop {
        if let Some(fate) = fate(write()) {
            return fate;
        }
    }
}

/// What became of a packet, by what the kernel said; `None`: it was interrupted, nothing has happened yet.
fn fate(written: io::Result<usize>) -> Option<io::Result<bool>> {
    match written {
        Ok(_) => Some(Ok(true)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EIO | libc::ENOBUFS)) => {
            Some(Ok(false))
        }
        Err(error) => Some(Err(error)),
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

/// A packet with a gratuitous ARP (RFC 5227, "announcement"): a broadcast request of `ip` for itself, upon which
/// neighbours correct their tables and switches learn the card's new port.
#[must_use]
pub fn gratuitous_arp(mac: MacAddress, ip: Ipv4Addr) -> [u8; ARP_PACKET] {
    const REQUEST: u16 = 1;
    address_frame(mac, 0x0806, REQUEST, ip, [0; 6])
}

/// A packet with a RARP request (RFC 903) of the card for its own address, as QEMU sends after a migration: it needs
/// no IP address, changes no neighbour's table, and teaches switches the card's new port.
#[must_use]
pub fn rarp_announcement(mac: MacAddress) -> [u8; ARP_PACKET] {
    const REVERSE_REQUEST: u16 = 3;
    address_frame(mac, 0x8035, REVERSE_REQUEST, Ipv4Addr::UNSPECIFIED, mac.bytes())
}

/// A packet with a broadcast of an ARP message for Ethernet and IPv4, with sender and target protocol address the same.
fn address_frame(
    mac: MacAddress,
    ether_type: u16,
    operation: u16,
    ip: Ipv4Addr,
    target: [u8; 6],
) -> [u8; ARP_PACKET] {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let (ether_type, operation, ip) = (ether_type.to_be_bytes(), operation.to_be_bytes(), ip.octets());
    let mac = mac.bytes();
    let mut packet = [0; ARP_PACKET];
    let mut rest = &mut packet[..];
    let parts: [&[u8]; 10] =
        [&COMPLETE, &BROADCAST, &mac, &ether_type, &ETHERNET_AND_IPV4, &operation, &mac, &ip, &target, &ip];
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = after;
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddress {
        "52:54:00:12:34:56".parse().unwrap()
    }

    fn hex(packet: &[u8]) -> String {
        assert_eq!(packet[..HEADER_LEN], COMPLETE);
        packet[HEADER_LEN..].iter().map(|byte| format!("{byte:02x}")).collect()
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

    /// A tap in a network namespace of this thread's own; `None` after telling why there is none.
    fn tap_in_a_namespace() -> Option<Tap> {
        // SAFETY: takes no pointers; it changes the namespace of this thread only, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            println!("skipped: no right to make a network namespace: {}", io::Error::last_os_error());
            return None;
        }
        Tap::open_or_create("tndm0").inspect_err(|error| println!("skipped: {error}")).ok()
    }

    /// The frames that wait in a tap, with their headers.
    fn waiting(tap: &Tap) -> Vec<([u8; HEADER_LEN], Vec<u8>)> {
        let mut buffer = vec![0; LONGEST_PACKET];
        let mut packets = Vec::new();
        while let Some(len) = tap.read_packet(&mut buffer).unwrap() {
            let (header, frame) = buffer[..len].split_first_chunk().unwrap();
            packets.push((*header, frame.to_vec()));
        }
        packets
    }

    #[test]
    fn frames_pass_through_a_tap() {
        let Some(tap) = tap_in_a_namespace() else { return };
        assert_eq!(tap.name(), "tndm0");
        assert!(!tap.write_packet(&rarp_announcement(mac())).unwrap(), "down, so lost");
        raise("tndm0");
        assert!(tap.write_packet(&rarp_announcement(mac())).unwrap());
        // A packet socket sends a frame out of the interface: the tap's reader gets it.
        let sent = [0x42u8; 60];
        send_raw("tndm0", COMPLETE, &sent);
        assert!(
            waiting(&tap).contains(&(COMPLETE, sent.to_vec())),
            "sent out of the interface, read from the tap"
        );
        assert!(matches!(Tap::open("tndm0"), Err(TapError::Attach { .. })), "one reader only");
        drop(tap);
        assert!(matches!(Tap::open("tndm0"), Err(TapError::Absent(_))), "it goes with its maker");
    }

    /// 3,000 bytes over TCP in one segment, for whoever can take it, and in three for others.
    #[test]
    fn the_kernel_leaves_to_the_reader_what_the_reader_can_do() {
        const HEADERS: usize = 14 + 20 + 20;
        let Some(tap) = tap_in_a_namespace() else { return };
        raise("tndm0");
        let mut frame = vec![0x42; HEADERS + 3000];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame[16..18].copy_from_slice(&3040u16.to_be_bytes());
        frame[18..24].copy_from_slice(&[0, 0, 0, 0, 64, 6]);
        frame[46] = 0x50;
        let segments = [1, 1, 0, 0, 0xb4, 5, 34, 0, 16, 0];
        let lengths = |tap: &Tap| {
            let sent = waiting(tap).into_iter().filter(|(_, frame)| frame[..12] == [0x42; 12]);
            // How much of it are headers is a hint that the kernel does not keep.
            let known = |mut header: [u8; HEADER_LEN]| {
                header[2..4].fill(0);
                header
            };
            sent.map(|(header, frame)| (known(header), frame.len())).collect::<Vec<_>>()
        };
        for (offloads, expected) in [
            (Offloads::NONE, vec![(COMPLETE, 1514), (COMPLETE, 1514), (COMPLETE, HEADERS + 80)]),
            (Offloads::CHECKSUM | Offloads::TSO4, vec![(segments, HEADERS + 3000)]),
            (Offloads::NONE, vec![(COMPLETE, 1514), (COMPLETE, 1514), (COMPLETE, HEADERS + 80)]),
        ] {
            tap.set_offloads(offloads).unwrap();
            send_raw("tndm0", segments, &frame);
            assert_eq!(lengths(&tap), expected, "{offloads:?}");
        }
        // From the reader too, whatever it can do.
        assert!(tap.write_packet(&[&segments[..], &frame].concat()).unwrap());
        assert!(
            tap.write_packet(&[&[1, 1, 255, 255, 0, 0, 255, 255, 255, 255][..], &frame].concat()).is_err()
        );
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

    fn send_raw(name: &str, header: [u8; HEADER_LEN], frame: &[u8]) {
        let packet = [&header, frame].concat();
        let on: libc::c_int = 1;
        // SAFETY: plain socket calls on buffers that outlive them; the socket is closed again.
        unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            assert!(socket >= 0);
            let set = libc::setsockopt(
                socket,
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            );
            assert_eq!(set, 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = libc::if_nametoindex(interface_name(name).unwrap().as_ptr()) as i32;
            address.sll_halen = 6;
            let sent = libc::sendto(
                socket,
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            );
            assert_eq!(sent, packet.len() as isize);
            libc::close(socket);
        }
    }
}
