//! What an arbiter holds, for people.

use std::fmt;

use crate::claim::{Claim, VmId};

/// What the claims are kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Disk Paxos on the sectors of a file or block device.
    Disk {
        /// Bytes in a sector: 512 or 4096.
        sector_size: u32,
        /// Generations kept.
        slots: u32,
    },
    /// `link(2)` in a directory.
    Directory,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { sector_size, slots } => {
                write!(f, "Disk Paxos, {sector_size}-byte sectors, last {slots} generations kept")
            }
            Self::Directory => {
                write!(f, "link(2) in a directory, last {} generations kept", crate::link::KEPT)
            }
        }
    }
}

/// Something the user should know about how an arbiter was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The file system refuses O_DIRECT, so reads come from this host's page cache.
    Buffered,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffered => f.write_str(
                "the file system refuses O_DIRECT: this arbiter is good for tests on one host, not for two hosts",
            ),
        }
    }
}

/// What an arbiter remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Whose arbiter it is.
    pub vm: VmId,
    /// What the claims are kept on.
    pub backend: Backend,
    /// The winners of the generations still kept, oldest first.
    pub claims: Vec<Claim>,
    /// Generations that were claimed and have no winner yet, oldest first. The next claim decides them.
    pub undecided: Vec<u64>,
    /// What could not be read, and why. A single entry does no harm: there are two copies.
    pub damage: Vec<String>,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {}, {}", self.vm, self.backend)?;
        for claim in &self.claims {
            write!(f, "\n{claim}")?;
        }
        for generation in &self.undecided {
            write!(f, "\ngeneration {generation}: claimed, not decided")?;
        }
        for damage in &self.damage {
            write!(f, "\ndamaged: {damage}")?;
        }
        if self.claims.is_empty() && self.undecided.is_empty() {
            f.write_str("\nnothing claimed")?;
        }
        Ok(())
    }
}
