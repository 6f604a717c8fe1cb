//! The heartbeat as a datagram: 64 bytes, little endian, with a checksum against the wire's errors. It does
//! not authenticate: the host wraps it in what does.
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | `TdHb` |
//! | 4 | version, 1 |
//! | 5 | standing |
//! | 6 | 1 if there is an echo |
//! | 7..16 | zero |
//! | 16..24 | generation |
//! | 24..32 | stamp |
//! | 32..40 | echo |
//! | 40..48 | received |
//! | 48..56 | sequence of a hand-over |
//! | 56..60 | zero |
//! | 60..64 | crc32c of all before |

use super::event::{Heartbeat, Standing};
use super::moment::Moment;

/// Bytes of an encoded heartbeat.
pub const HEARTBEAT_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"TdHb";
const VERSION: u8 = 1;

/// Why a datagram is no heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Too short, too long, or not Tandem's.
    #[error("no heartbeat: {0} bytes")]
    Foreign(usize),
    /// Another version of the protocol.
    #[error("heartbeat of version {0}, this side speaks {VERSION}: run the same release on both hosts")]
    Version(u8),
    /// Damaged on the way.
    #[error("heartbeat with a wrong checksum")]
    Checksum,
    /// Fields with values that nobody sends.
    #[error("heartbeat with a malformed field")]
    Malformed,
}

impl Heartbeat {
    /// The datagram.
    #[must_use]
    pub fn encode(&self) -> [u8; HEARTBEAT_BYTES] {
        let (standing, sequence) = match self.standing {
            Standing::Paired => (0, 0),
            Standing::WantsHandOver => (1, 0),
            Standing::HandedOver { sequence } => (2, sequence),
            Standing::Claiming => (3, 0),
            Standing::Won => (4, 0),
            Standing::Leaving => (5, 0),
        };
        let mut bytes = [0; HEARTBEAT_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = standing;
        bytes[6] = u8::from(self.echo.is_some());
        let echo = self.echo.unwrap_or_default().as_nanos();
        let words = [self.generation, self.stamp.as_nanos(), echo, self.received, sequence];
        for (place, word) in bytes[16..56].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let sum = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// It is not exactly what [`Heartbeat::encode`] makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeartbeatError> {
        let Ok(bytes) = <&[u8; HEARTBEAT_BYTES]>::try_from(bytes) else {
            return Err(HeartbeatError::Foreign(bytes.len()));
        };
        if bytes[..4] != MAGIC {
            return Err(HeartbeatError::Foreign(bytes.len()));
        }
        if crc32c::crc32c(&bytes[..60]).to_le_bytes() != bytes[60..] {
            return Err(HeartbeatError::Checksum);
        }
        if bytes[4] != VERSION {
            return Err(HeartbeatError::Version(bytes[4]));
        }
        let word =
            |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let standing = match bytes[5] {
            0 => Standing::Paired,
            1 => Standing::WantsHandOver,
            2 => Standing::HandedOver { sequence: word(48) },
            3 => Standing::Claiming,
            4 => Standing::Won,
            5 => Standing::Leaving,
            _ => return Err(HeartbeatError::Malformed),
        };
        let echo = match bytes[6] {
            0 => None,
            1 => Some(Moment::from_nanos(word(32))),
            _ => return Err(HeartbeatError::Malformed),
        };
        let heartbeat = Self {
            generation: word(16),
            stamp: Moment::from_nanos(word(24)),
            echo,
            received: word(40),
            standing,
        };
        // What is not used must be zero: there is one encoding of each heartbeat.
        if heartbeat.encode() == *bytes { Ok(heartbeat) } else { Err(HeartbeatError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_heartbeat() -> impl Strategy<Value = Heartbeat> {
        let standing = prop_oneof![
            Just(Standing::Paired),
            Just(Standing::WantsHandOver),
            any::<u64>().prop_map(|sequence| Standing::HandedOver { sequence }),
            Just(Standing::Claiming),
            Just(Standing::Won),
            Just(Standing::Leaving),
        ];
        (any::<u64>(), any::<u64>(), any::<Option<u64>>(), any::<u64>(), standing).prop_map(
            |(generation, stamp, echo, received, standing)| Heartbeat {
                generation,
                stamp: Moment::from_nanos(stamp),
                echo: echo.map(Moment::from_nanos),
                received,
                standing,
            },
        )
    }

    proptest! {
        #[test]
        fn comes_back_as_it_went(heartbeat in any_heartbeat()) {
            prop_assert_eq!(Heartbeat::decode(&heartbeat.encode()), Ok(heartbeat));
        }

        #[test]
        fn any_flipped_bit_is_noticed(heartbeat in any_heartbeat(), bit in 0usize..HEARTBEAT_BYTES * 8) {
            let mut bytes = heartbeat.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Heartbeat::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), forge in any::<bool>()) {
            if forge && bytes.len() >= HEARTBEAT_BYTES {
                bytes.truncate(HEARTBEAT_BYTES);
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = VERSION;
                let sum = crc32c::crc32c(&bytes[..60]);
                bytes[60..].copy_from_slice(&sum.to_le_bytes());
            }
            if let Ok(heartbeat) = Heartbeat::decode(&bytes) {
                prop_assert_eq!(&heartbeat.encode()[..], &bytes[..]);
            }
        }
    }
}
