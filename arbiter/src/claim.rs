//! What is claimed, by whom, and the answer.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that is not an identifier of 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier: {text:?}; expected 32 hexadecimal digits, dashes allowed")]
pub struct BadId {
    /// The text as given.
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_id(text).map(Self).ok_or_else(|| BadId { text: text.to_owned() })
            }
        }
    };
}

id! {
    /// Which virtual machine an arbiter belongs to: 16 bytes, shown as 32 hexadecimal digits.
    VmId
}

id! {
    /// Who claims: 16 random bytes, drawn once by each process that may claim.
    ///
    /// Two processes with one token would both be told that they won, so a token must never be shared,
    /// copied in a configuration file, or derived from anything but a random source.
    Token
}

fn parse_id(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    let mut digits = text.chars().filter(|c| *c != '-');
    for byte in &mut id {
        let (high, low) = (digits.next()?.to_digit(16)?, digits.next()?.to_digit(16)?);
        *byte = (high << 4 | low) as u8;
    }
    digits.next().is_none().then_some(id)
}

/// Which of the two roles of a generation a contender had when it lost its peer.
///
/// On a disk each side writes sectors of its own, as Disk Paxos demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The side that executed the guest and sent the log.
    Primary,
    /// The side that received the log and replayed it.
    Backup,
}

impl Side {
    /// Both sides, in the order of their index.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Backup];

    /// 0 for the primary, 1 for the backup.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Primary => 0,
            Self::Backup => 1,
        }
    }

    /// The inverse of [`Side::index`].
    #[must_use]
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Primary),
            1 => Some(Self::Backup),
            _ => None,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

impl FromStr for Side {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            "backup" => Ok(Self::Backup),
            other => Err(format!("not a side: {other:?}; expected primary or backup")),
        }
    }
}

/// A claim to be the one side of `generation` that lives on: what a contender asks for, and what storage
/// remembers of the winner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The virtual machine claimed.
    pub vm: VmId,
    /// The generation claimed, from 1. It grows with every new pair of sides.
    pub generation: u64,
    /// The side that claims.
    pub side: Side,
    /// The process that claims.
    pub token: Token,
    /// When it claimed, by its own clock, in milliseconds since 1970. For people; nothing is decided by it.
    pub time_ms: u64,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}: {} with token {}", self.generation, self.side, self.token)
    }
}

/// The answer to a claim. Everything but [`Verdict::Won`] forbids running alone.
#[must_use = "only the winner may run"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The caller's token is the one decided for this generation, for good.
    Won,
    /// Another token is decided for this generation, for good: halt.
    Lost {
        /// The claim that won.
        winner: Claim,
    },
    /// A later generation has been claimed, so this one is over whoever won it: halt.
    Superseded {
        /// The latest generation seen.
        by: u64,
    },
    /// Nothing is decided yet: the other side claims at the same moment. Claim again, with the same token.
    Contended {
        /// How long to wait first.
        retry_after: Duration,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Won => f.write_str("won"),
            Self::Lost { winner } => write!(f, "lost to {winner}"),
            Self::Superseded { by } => write!(f, "superseded by generation {by}"),
            Self::Contended { retry_after } => write!(f, "contended, try again in {retry_after:?}"),
        }
    }
}

impl Verdict {
    /// The verdict for the holder of `token`, given the claim that was decided.
    pub(crate) fn of(decided: Claim, token: Token) -> Self {
        if decided.token == token { Self::Won } else { Self::Lost { winner: decided } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_round_trip_through_text() {
        let id = VmId([0xa0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(id.to_string(), "a00102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("a0010203-0405-0607-0809-0a0b0c0d0eff".parse(), Ok(id));
    }

    #[test]
    fn identifiers_of_another_length_or_alphabet_are_refused() {
        for text in ["", "a0", "g00102030405060708090a0b0c0d0eff", "a00102030405060708090a0b0c0d0eff0"] {
            assert!(text.parse::<Token>().is_err(), "{text:?}");
        }
    }
}
