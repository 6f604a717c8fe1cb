//! What can go wrong, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::claim::VmId;
use crate::record::Defect;

/// Why a claim got no verdict, or an arbiter could not be opened. After any error the caller has not won:
/// it must not run alone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage does not answer, or answered with an I/O error. Whether the claim took effect is not
    /// known: wait and claim again with the same token.
    #[error("arbiter {} does not answer; waiting is safe, running alone is not", path.display())]
    Unreachable {
        /// The arbiter's path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// There is nothing at the path.
    #[error("arbiter {} does not exist; is its storage mounted? `tandem arbiter init` makes a new one", path.display())]
    Missing {
        /// The arbiter's path.
        path: PathBuf,
    },

    /// `init` has no directory to make the file in.
    #[error("arbiter {} cannot be made: there is no directory {}; is its storage mounted?", path.display(), directory.display())]
    NoDirectory {
        /// The arbiter's path.
        path: PathBuf,
        /// The directory that is missing.
        directory: PathBuf,
    },

    /// The operating system does not let this process at the arbiter.
    #[error("arbiter {} is not accessible; it must be readable and writable", path.display())]
    Denied {
        /// The arbiter's path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The path holds no arbiter.
    #[error("{} holds no arbiter ({defect}); `tandem arbiter init` makes one", path.display())]
    NotInitialised {
        /// The arbiter's path.
        path: PathBuf,
        /// What is there instead of the header.
        defect: Defect,
    },

    /// `init` found an arbiter, whose claims it would have erased.
    #[error("{} is already the arbiter of VM {vm}; its claims are kept; `tandem arbiter init --overwrite` drops them, which is for when neither side runs", path.display())]
    AlreadyInitialised {
        /// The arbiter's path.
        path: PathBuf,
        /// Whose arbiter it is.
        vm: VmId,
    },

    /// `init` found data that is not an arbiter's.
    #[error("{} holds other data, which is kept; `tandem arbiter init --overwrite` destroys it", path.display())]
    NotEmpty {
        /// The path.
        path: PathBuf,
    },

    /// The arbiter belongs to another virtual machine.
    #[error("{} is the arbiter of VM {found}, not of VM {expected}; check the arbiter's path in the configuration", path.display())]
    WrongVm {
        /// The arbiter's path.
        path: PathBuf,
        /// Whose arbiter it is.
        found: VmId,
        /// Whose claim was made.
        expected: VmId,
    },

    /// Both copies of something that decides are unreadable, so no claim can be answered safely.
    #[error("arbiter {} is damaged: {what} ({defect}); stop both sides before `tandem arbiter init`", path.display())]
    Corrupt {
        /// The arbiter's path.
        path: PathBuf,
        /// What could not be read.
        what: String,
        /// How it is damaged.
        defect: Defect,
    },

    /// The storage cannot carry an arbiter.
    #[error("{} cannot be an arbiter: {why}", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// Why not, and what would.
        why: String,
    },

    /// Generation 0 stands for "never claimed" and cannot be claimed.
    #[error("generation 0 cannot be claimed; generations start at 1")]
    GenerationZero,

    /// The operating system gave no random number.
    #[error("no random number from the operating system")]
    Random(#[source] io::Error),
}

impl Error {
    /// Whether the same claim can succeed later without anyone changing the configuration: wait and repeat it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Missing { .. } | Self::Random(_))
    }

    /// The error for a failed call on the arbiter at `path`.
    pub(crate) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Denied { path, source }
            }
            _ => Self::Unreachable { path, source },
        }
    }
}
