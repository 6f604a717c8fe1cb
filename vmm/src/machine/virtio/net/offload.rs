//! What is left to the reader of a packet: checksums and segmentation (virtio 1.3, section 5.1.6).
//!
//! Between machine and host a packet is a header of [`HEADER_LEN`] bytes (`struct virtio_net_hdr`, without
//! `num_buffers`, which is between device and driver alone) and the frame, as a tap gives and takes it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header before each frame.
pub const HEADER_LEN: usize = 10;

/// The header of a frame that nothing is left to do with.
pub const COMPLETE: [u8; HEADER_LEN] = [0; HEADER_LEN];

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const CHECKSUM_IS_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// What a reader of packets can do: a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offloads(u8);

impl Offloads {
    /// Nothing: frames must be complete.
    pub const NONE: Self = Self(0);
    /// Fill in a checksum, or believe that one is right.
    pub const CHECKSUM: Self = Self(1);
    /// Cut a long TCP segment over IPv4 into several, or take it as it is.
    pub const TSO4: Self = Self(2);
    /// The same over IPv6.
    pub const TSO6: Self = Self(4);
    /// The same of segments with a congestion mark (RFC 3168).
    pub const ECN: Self = Self(8);

    const TO_GUEST: [(u32, Self); 4] = [
        (VIRTIO_NET_F_GUEST_CSUM, Self::CHECKSUM),
        (VIRTIO_NET_F_GUEST_TSO4, Self::TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, Self::TSO6),
        (VIRTIO_NET_F_GUEST_ECN, Self::ECN),
    ];
    const FROM_GUEST: [(u32, Self); 4] = [
        (VIRTIO_NET_F_CSUM, Self::CHECKSUM),
        (VIRTIO_NET_F_HOST_TSO4, Self::TSO4),
        (VIRTIO_NET_F_HOST_TSO6, Self::TSO6),
        (VIRTIO_NET_F_HOST_ECN, Self::ECN),
    ];

    /// The feature bits for all of it, both ways.
    pub(super) fn features() -> u64 {
        Self::TO_GUEST.iter().chain(&Self::FROM_GUEST).fold(0, |bits, (feature, _)| bits | 1 << feature)
    }

    /// What a driver with these features takes.
    pub(super) fn to_guest(features: u64) -> Self {
        Self::negotiated(features, &Self::TO_GUEST)
    }

    /// What a driver with these features may leave to the device.
    pub(super) fn from_guest(features: u64) -> Self {
        Self::negotiated(features, &Self::FROM_GUEST)
    }

    /// All others need checksums (section 5.1.3.1): a driver that wants them without gets none.
    fn negotiated(features: u64, table: &[(u32, Self); 4]) -> Self {
        let set = table.iter().filter(|(feature, _)| features & 1 << feature != 0);
        let set = set.fold(Self::NONE, |set, (_, offload)| set | *offload);
        if set.has(Self::CHECKSUM) { set } else { Self::NONE }
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What a driver's `header` asks the host to do with a frame of `len` bytes. `None`: what was not negotiated, or
    /// nonsense.
    pub(super) fn sent(self, header: [u8; HEADER_LEN], len: usize) -> Option<[u8; HEADER_LEN]> {
        self.admit(header, len, NEEDS_CHECKSUM)
    }

    /// What a packet's `header` asks the driver to do with a frame of `len` bytes; `None` as for [`Self::sent`].
    pub(super) fn received(self, header: [u8; HEADER_LEN], len: usize) -> Option<[u8; HEADER_LEN]> {
        // Good news that the driver cannot take is no reason to drop the frame.
        let known =
            if self.has(Self::CHECKSUM) { NEEDS_CHECKSUM | CHECKSUM_IS_VALID } else { NEEDS_CHECKSUM };
        self.admit(header, len, known)
    }

    /// The header with `known` flags only: others are ignored (section 5.1.6.2.2).
    fn admit(self, header: [u8; HEADER_LEN], len: usize, known: u8) -> Option<[u8; HEADER_LEN]> {
        let [flags, kind, _, _, size @ .., start_0, start_1, offset_0, offset_1] = header;
        let flags = flags & known;
        let wants = |offload| self.has(offload).then_some(());
        if flags & NEEDS_CHECKSUM != 0 {
            wants(Self::CHECKSUM)?;
            let start = usize::from(u16::from_le_bytes([start_0, start_1]));
            let offset = usize::from(u16::from_le_bytes([offset_0, offset_1]));
            (start + offset + 2 <= len).then_some(())?;
        }
        match u32::from(kind & !ECN) {
            VIRTIO_NET_HDR_GSO_NONE if flags & NEEDS_CHECKSUM == 0 => {
                return Some([flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
            VIRTIO_NET_HDR_GSO_NONE => {}
            segments => {
                wants(match segments {
                    VIRTIO_NET_HDR_GSO_TCPV4 => Self::TSO4,
                    VIRTIO_NET_HDR_GSO_TCPV6 => Self::TSO6,
                    _ => return None,
                })?;
                if kind & ECN != 0 {
                    wants(Self::ECN)?;
                }
                (flags & NEEDS_CHECKSUM != 0 && size != [0; 2]).then_some(())?;
            }
        }
        let mut admitted = header;
        admitted[0] = flags;
        Some(admitted)
    }
}

impl std::ops::BitOr for Offloads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads(15);
    const FRAME: usize = 9000;
    /// An IPv4 TCP frame whose checksum is to be filled in: it begins at byte 34, its sum lies 16 bytes into it.
    const CHECKSUM: [u8; HEADER_LEN] = [NEEDS_CHECKSUM, 0, 0, 0, 0, 0, 34, 0, 16, 0];
    const LONG: [u8; HEADER_LEN] = [NEEDS_CHECKSUM, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0];

    fn with(header: [u8; HEADER_LEN], at: usize, byte: u8) -> [u8; HEADER_LEN] {
        let mut header = header;
        header[at] = byte;
        header
    }

    #[test]
    fn what_was_negotiated_passes_and_the_rest_does_not() {
        let six = with(LONG, 1, 4);
        let marked = with(LONG, 1, 1 | ECN);
        let (sum, four) = (Offloads::CHECKSUM, Offloads::CHECKSUM | Offloads::TSO4);
        for (header, enough, too_little) in [
            (CHECKSUM, sum, Offloads::NONE),
            (LONG, four, sum),
            (six, sum | Offloads::TSO6, four),
            (marked, four | Offloads::ECN, four),
        ] {
            for side in [Offloads::sent, Offloads::received] {
                assert_eq!(side(enough, header, FRAME), Some(header));
                assert_eq!(side(ALL, header, FRAME), Some(header));
                assert_eq!(side(too_little, header, FRAME), None, "{header:?}");
            }
        }
        assert_eq!(Offloads::NONE.sent(COMPLETE, 14), Some(COMPLETE));
    }

    #[test]
    fn nonsense_does_not_pass() {
        for header in [
            // UDP segmentation, an unknown kind, segments of no length, and segments without checksums.
            with(LONG, 1, 3),
            with(LONG, 1, 77),
            with(with(LONG, 4, 0), 5, 0),
            with(LONG, 0, 0),
        ] {
            assert_eq!(ALL.sent(header, FRAME), None, "{header:?}");
            assert_eq!(ALL.received(header, FRAME), None, "{header:?}");
        }
        assert_eq!(ALL.sent(CHECKSUM, 51), None, "the checksum would lie behind the frame");
        assert_eq!(ALL.sent(CHECKSUM, 52), Some(CHECKSUM));
        assert_eq!(ALL.sent([NEEDS_CHECKSUM, 0, 0, 0, 0, 0, 255, 255, 255, 255], 65_550), None);
    }

    #[test]
    fn flags_that_say_nothing_to_the_reader_are_taken_out() {
        let valid = with(COMPLETE, 0, CHECKSUM_IS_VALID | 0xf0);
        assert_eq!(ALL.sent(valid, 60), Some(COMPLETE));
        assert_eq!(Offloads::NONE.received(valid, 60), Some(COMPLETE));
        assert_eq!(ALL.received(valid, 60), Some(with(COMPLETE, 0, CHECKSUM_IS_VALID)));
        // Of a complete frame nothing else is looked at.
        assert_eq!(ALL.sent([0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 60), Some(COMPLETE));
    }

    #[test]
    fn nothing_is_negotiated_without_checksums() {
        let bit = |feature: u32| 1u64 << feature;
        let long = bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_HOST_TSO6);
        assert_eq!(Offloads::to_guest(long), Offloads::NONE);
        let both = long | bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_CSUM);
        assert_eq!(Offloads::to_guest(both), Offloads::CHECKSUM | Offloads::TSO4);
        assert_eq!(Offloads::from_guest(both), Offloads::CHECKSUM | Offloads::TSO6);
        assert_eq!(Offloads::to_guest(Offloads::features()), ALL);
        assert_eq!(Offloads::from_guest(Offloads::features()), ALL);
    }
}
