//! Heartbeat datagrams.
//!
//! They travel by UDP, apart from the log, so that a full log stream does not look like a dead host.
//! Each carries the sender's clock and the last stamp heard from the peer, from which either side
//! computes the round trip, and a keyed MAC, so that a stranger can neither forge life nor death.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `TLHB` |
//! | 4 | 2 | version |
//! | 6 | 1 | side: 1 primary, 2 backup |
//! | 7 | 1 | standing: what the sender is about, a number of the protocol above |
//! | 8 | 8 | first eight bytes of the machine's identity hash |
//! | 16 | 8 | generation |
//! | 24 | 8 | counter |
//! | 32 | 8 | stamp: the sender's clock, nanoseconds |
//! | 40 | 8 | echo: the last stamp heard from the peer, 0 for none |
//! | 48 | 8 | received: the log is in the sender's memory up to this frame |
//! | 56 | 8 | argument: belongs to the standing |
//! | 64 | 16 | BLAKE2s MAC of all before, under a key derived from the pre-shared key |
//!
//! Integers are little-endian. A datagram is as long as the table says, neither shorter nor longer.

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use std::fmt;
use thiserror::Error;

use crate::handshake::{PreSharedKey, Side};

/// First four bytes of a heartbeat.
pub const MAGIC: [u8; 4] = *b"TLHB";
/// Version of the datagram.
pub const VERSION: u16 = 1;
/// Bytes of a datagram.
pub const LEN: usize = 80;
const MAC_AT: usize = 64;
const PURPOSE: &str = "tandem heartbeat 1";

/// One heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who sends.
    pub side: Side,
    /// What the sender is about: a number that the protocol above gives a meaning.
    pub standing: u8,
    /// First eight bytes of the machine's identity hash: several pairs may share a host.
    pub identity: [u8; 8],
    /// The sender's generation.
    pub generation: u64,
    /// Rises with every datagram of a sender. Start it at the clock, and it rises over restarts too.
    pub counter: u64,
    /// The sender's clock in nanoseconds.
    pub stamp: u64,
    /// The last stamp the sender heard; 0 for none.
    pub echo: u64,
    /// A backup's: the log is in its memory up to the frame with this sequence number.
    pub received: u64,
    /// Belongs to the standing.
    pub argument: u64,
}

/// Why a datagram is not a heartbeat. To be counted and dropped: anybody can send datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeartbeatError {
    /// Another length.
    #[error("heartbeat of {0} bytes instead of {LEN}")]
    Length(usize),
    /// Not a heartbeat at all.
    #[error("no heartbeat: magic {0:02x?}")]
    Magic([u8; 4]),
    /// Another version.
    #[error("heartbeat version: here {VERSION}, peer {0}")]
    Version(u16),
    /// Damaged, or made by somebody without the key.
    #[error("the heartbeat's MAC is wrong: another key, or a forgery")]
    Mac,
    /// Neither primary nor backup.
    #[error("heartbeat from unknown side {0}")]
    Side(u8),
}

/// The key heartbeats are signed with.
#[derive(Clone)]
pub struct HeartbeatKey(Blake2sMac<U16>);

impl HeartbeatKey {
    /// Derived from the pair's key, and of no use for anything else.
    #[must_use]
    pub fn new(key: &PreSharedKey) -> Self {
        Self(<Blake2sMac<U16> as KeyInit>::new((&*key.derive(PURPOSE)).into()))
    }
}

impl fmt::Debug for HeartbeatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeartbeatKey(..)")
    }
}

impl Heartbeat {
    /// The datagram.
    #[must_use]
    pub fn encode(&self, key: &HeartbeatKey) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.side as u8;
        out[7] = self.standing;
        out[8..16].copy_from_slice(&self.identity);
        let words = [self.generation, self.counter, self.stamp, self.echo, self.received, self.argument];
        for (chunk, word) in out[16..MAC_AT].chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let tag = key.0.clone().chain_update(&out[..MAC_AT]).finalize().into_bytes();
        out[MAC_AT..].copy_from_slice(&tag);
        out
    }

    /// Reads a datagram and checks its MAC. Whether it is for this machine, fresh, and from the other
    /// side, is for the caller: see [`Freshness`].
    ///
    /// # Errors
    /// Any [`HeartbeatError`].
    pub fn decode(datagram: &[u8], key: &HeartbeatKey) -> Result<Self, HeartbeatError> {
        let bytes: &[u8; LEN] = datagram.try_into().map_err(|_| HeartbeatError::Length(datagram.len()))?;
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(HeartbeatError::Magic(magic));
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(HeartbeatError::Version(version));
        }
        let mac = key.0.clone().chain_update(&bytes[..MAC_AT]);
        mac.verify_slice(&bytes[MAC_AT..]).map_err(|_| HeartbeatError::Mac)?;
        let side = match bytes[6] {
            1 => Side::Primary,
            2 => Side::Backup,
            other => return Err(HeartbeatError::Side(other)),
        };
        let mut words = [0; 7];
        for (word, chunk) in words.iter_mut().zip(bytes[8..MAC_AT].as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        let [identity, generation, counter, stamp, echo, received, argument] = words;
        Ok(Self {
            side,
            standing: bytes[7],
            identity: identity.to_le_bytes(),
            generation,
            counter,
            stamp,
            echo,
            received,
            argument,
        })
    }
}

/// Tells fresh heartbeats from late or replayed ones: only one with a higher counter than all before,
/// or of a higher generation, is a sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    newest: Option<(u64, u64)>,
}

impl Freshness {
    /// Whether the heartbeat is news; if so, everything up to it is old from now on.
    pub fn admit(&mut self, heartbeat: &Heartbeat) -> bool {
        let this = Some((heartbeat.generation, heartbeat.counter));
        let fresh = this > self.newest;
        if fresh {
            self.newest = this;
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> HeartbeatKey {
        HeartbeatKey::new(&PreSharedKey::new([byte; 32]))
    }

    const BEAT: Heartbeat = Heartbeat {
        side: Side::Backup,
        standing: 3,
        identity: *b"identity",
        generation: 3,
        counter: 9,
        stamp: 1_000,
        echo: 900,
        received: 77,
        argument: 5,
    };

    #[test]
    fn a_heartbeat_crosses_and_a_stranger_cannot_make_one() {
        let datagram = BEAT.encode(&key(1));
        assert_eq!(Heartbeat::decode(&datagram, &key(1)), Ok(BEAT));
        assert_eq!(Heartbeat::decode(&datagram, &key(2)), Err(HeartbeatError::Mac));
        for at in 6..LEN {
            let mut forged = datagram;
            forged[at] ^= 1;
            assert_eq!(Heartbeat::decode(&forged, &key(1)), Err(HeartbeatError::Mac), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_heartbeat_is_named() {
        let good = BEAT.encode(&key(1));
        assert_eq!(Heartbeat::decode(&good[..LEN - 1], &key(1)), Err(HeartbeatError::Length(LEN - 1)));
        assert_eq!(Heartbeat::decode(&[0; LEN], &key(1)), Err(HeartbeatError::Magic([0; 4])));
        let signed = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            let tag = key(1).0.chain_update(&bytes[..MAC_AT]).finalize().into_bytes();
            bytes[MAC_AT..].copy_from_slice(&tag);
            Heartbeat::decode(&bytes, &key(1))
        };
        assert_eq!(signed(4, 2), Err(HeartbeatError::Version(2)));
        assert_eq!(signed(6, 3), Err(HeartbeatError::Side(3)));
    }

    #[test]
    fn late_and_replayed_heartbeats_are_no_sign_of_life() {
        let mut freshness = Freshness::default();
        let with = |generation, counter| Heartbeat { generation, counter, ..BEAT };
        assert!(freshness.admit(&with(1, 5)));
        assert!(!freshness.admit(&with(1, 5)));
        assert!(!freshness.admit(&with(1, 4)));
        assert!(freshness.admit(&with(1, 6)));
        assert!(freshness.admit(&with(2, 0)));
        assert!(!freshness.admit(&with(1, 7)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), valid_start: bool) {
            let mut bytes = bytes;
            if valid_start && bytes.len() >= 6 {
                bytes[..6].copy_from_slice(&BEAT.encode(&key(1))[..6]);
            }
            let _ = Heartbeat::decode(&bytes, &key(1));
        }

        #[test]
        fn what_was_encoded_is_decoded(generation: u64, counter: u64, stamp: u64, echo: u64, identity: [u8; 8]) {
            let (standing, received, argument) = (identity[0], stamp ^ echo, counter ^ generation);
            let beat = Heartbeat {
                side: Side::Primary, standing, identity, generation, counter, stamp, echo, received, argument,
            };
            prop_assert_eq!(Heartbeat::decode(&beat.encode(&key(7)), &key(7)), Ok(beat));
        }
    }
}
