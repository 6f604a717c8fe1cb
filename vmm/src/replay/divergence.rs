//! Where and how a replay differed from what was recorded.

use std::fmt;

use thiserror::Error;

use super::position::Position;

/// The first difference between a recording and its replay.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Divergence {
    /// Where it was noticed.
    pub position: Position,
    /// Guest instruction pointer of the replay there.
    pub rip: u64,
    /// Kind of the exit in the replay, from `Exit::KINDS`.
    pub exit: &'static str,
    /// What differs.
    pub what: Difference,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A word of the exit or a register.
    Word {
        /// Its name, as in [`super::trace::WORDS`].
        name: &'static str,
        /// As recorded.
        expected: u64,
        /// As replayed.
        found: u64,
    },
    /// The digest of all exits so far, where no exit-by-exit record is there to be more exact.
    Digest {
        /// As recorded.
        expected: u64,
        /// As replayed.
        found: u64,
    },
    /// Guest memory.
    Memory {
        /// Guest page number.
        page: u64,
        /// Byte offset in the page of the first differing line.
        offset: usize,
        /// Length of that line in bytes.
        len: usize,
    },
    /// The state of a device or of the vCPU at the end.
    State {
        /// Which part.
        part: String,
        /// Sum as recorded.
        expected: u64,
        /// Sum as replayed.
        found: u64,
    },
    /// A captured instruction where the recording has none, or another one.
    Captured {
        /// What the replay found instead of what was recorded.
        found: &'static str,
    },
    /// One side ended before the other.
    End {
        /// The point at which the recording ended.
        expected: u64,
        /// The point at which the replay ended.
        found: u64,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "divergence at {} ({}, RIP {:#x}): ", self.position, self.exit, self.rip)?;
        match &self.what {
            Difference::Word { name, expected, found } => {
                write!(f, "{name} expected {expected:#x}, found {found:#x}")
            }
            Difference::Digest { expected, found } => {
                write!(f, "digest expected {expected:#018x}, found {found:#018x}")
            }
            Difference::Memory { page, offset, len } => {
                write!(f, "memory differs in page {page:#x} at offset {offset:#x}..{:#x}", offset + len)
            }
            Difference::State { part, expected, found } => {
                write!(f, "state of {part} expected {expected:#018x}, found {found:#018x}")
            }
            Difference::Captured { found } => write!(f, "{found}"),
            Difference::End { expected, found } => {
                write!(f, "the recording ended at point {expected}, the replay at {found}")
            }
        }
    }
}
