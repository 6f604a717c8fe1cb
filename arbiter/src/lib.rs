//! A test-and-set on shared storage: of the two sides of a virtual machine that lost sight of each other, one
//! per generation is told that it won, and only that one may run on.
//!
//! ```no_run
//! use tandem_arbiter::{Arbiter, Claim, InitOptions, Side, Token, Verdict, VmId};
//!
//! # fn main() -> Result<(), tandem_arbiter::Error> {
//! # let (random, now_ms) = ([1; 16], 0);
//! let vm: VmId = "5f0c7a52-9d1e-4a53-8a6b-0d6f8c3e2b11".parse().expect("32 hexadecimal digits");
//! Arbiter::init("/shared/vm.arbiter".as_ref(), vm, &InitOptions::default())?; // once
//!
//! let mut arbiter = Arbiter::open("/shared/vm.arbiter".as_ref())?;
//! let claim =
//!     Claim { vm, generation: 1, side: Side::Backup, token: Token(random), time_ms: now_ms };
//! match arbiter.claim(&claim)? {
//!     Verdict::Won => println!("go live"),
//!     Verdict::Lost { .. } | Verdict::Superseded { .. } => println!("halt"),
//!     Verdict::Contended { .. } => println!("claim again"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - **One winner.** In each generation at most one token is ever answered [`Verdict::Won`], and everyone
//!   who is answered [`Verdict::Lost`] is told that token. This holds for any number of crashes at any moment, for
//!   processes that freeze and come back, and for hosts whose clocks disagree: no clock is read.
//! - **For good.** Once decided, a generation is never decided otherwise; claiming again with the winner's
//!   token gives `Won` again, from any process, until a later generation is claimed.
//! - **Generations only grow.** Once anyone has claimed a later generation, claims of earlier ones are
//!   answered [`Verdict::Superseded`], even to their winner. The last 16 generations (or as many as `init` was
//!   told) are kept; a side that slept for longer still cannot win.
//! - **Alone is enough.** A side whose peer is dead gets its verdict, whatever the peer was doing when it died.
//! - **An error is not a win.** After any [`Error`], nothing is known of the outcome and the caller must not run
//!   alone; it waits and claims again with the same token.
//!
//! A token that is decided may belong to a process that died before it was told. Then nobody lives in that
//! generation; the paper's test-and-set has the same case, and it takes two failures: the one that made the
//! sides claim, and the death of the winner in the milliseconds until its answer.
//!
//! # Where, and what it survives
//! What is at the path says how claims are kept.
//!
//! - **A file or block device** (iSCSI, NVMe over fabrics, multi-attached cloud disk, a file on a cluster file
//!   system or NFS): Disk Paxos on plain sectors, written with O_DIRECT and O_DSYNC. Nothing is asked of the device
//!   but that reads return what writes wrote. It survives any one of: the crash of a contender between or
//!   within any two sector writes; a torn write; an unreadable sector; a stale sector written late by a
//!   frozen process, a held-up request or a crashed host; an I/O error after which it is not known whether the
//!   write took effect. When both copies of a block are unreadable that is reported ([`Error::Corrupt`]), not
//!   guessed at. It is one disk: when that is away, both sides wait. [`paxos`] has the protocol and its limits.
//! - **A directory** (NFS, any cluster file system with hard links): a claim is a file, linked to the generation's
//!   name by `link(2)`. It survives: the crash of either contender at any moment; a lost or repeated NFS
//!   reply; a crash of the file server, as far as it keeps what it acknowledged as synced (NFS `sync`
//!   exports). The claim is one file: when its contents rot, that is reported, not guessed at.
//!
//! A local file serves tests on one host. Where the file system refuses O_DIRECT, [`Arbiter::notice`] says so.
//!
//! # What the caller must do
//! - **Use a thread.** All calls block, and storage that hangs (a hard-mounted NFS server that is away, a
//!   device queueing without a path) blocks them without end: no system call can take an I/O back. Call from
//!   a thread of its own, say in the status that the arbiter has been awaited since when, and go on
//!   waiting: silence is not a win. The verdict, when it comes, still holds.
//! - **Draw a [`Token`] at random** in each process, and keep it for repeated claims of that process.
//! - **Claim a generation from its two sides only**, one process a side. A replacement started while its
//!   predecessor is frozen or unreachable is safe; a third process on the same side is not.
//! - **Initialise once**, before either side runs, and never while one does.

mod backoff;
pub mod claim;
mod disk;
mod error;
mod link;
mod medium;
pub mod paxos;
pub mod record;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backoff::Backoff;
pub use claim::{BadId, Claim, Side, Token, Verdict, VmId};
use disk::Disk;
pub use error::Error;
use link::Directory;
use medium::{DirectFile, Medium};
use record::Header;
pub use state::{Backend, Notice, State};

/// How to make an arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitOptions {
    /// Erase an arbiter or other data that is there. Never while a side of that VM runs.
    pub overwrite: bool,
    /// Bytes in a sector: 512 or 4096; `None`: what this host's device has. Give 4096 when another host
    /// reaches the same storage through a device with such sectors. Not used in a directory.
    pub sector_size: Option<u32>,
    /// Generations kept, 2 to 256. Not used in a directory.
    pub slots: u32,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { overwrite: false, sector_size: None, slots: 16 }
    }
}

#[derive(Debug)]
enum Store {
    Disk(Disk<DirectFile>),
    Directory(Directory),
}

/// An open arbiter. See the [crate] for its guarantees.
#[derive(Debug)]
pub struct Arbiter {
    path: PathBuf,
    store: Store,
    notice: Option<Notice>,
    /// The last call failed: the storage may have been remounted, and what is open be stale.
    suspect: bool,
}

impl Arbiter {
    /// Makes an arbiter for `vm` at `path`: in a directory that exists, on a block device, or in a file, which is
    /// made if there is none.
    ///
    /// # Errors
    /// [`Error::AlreadyInitialised`] or [`Error::NotEmpty`] if there is something and
    /// [`InitOptions::overwrite`] is not set; [`Error::Unsupported`] for a device that is too small or options
    /// out of range; I/O errors.
    pub fn init(path: &Path, vm: VmId, options: &InitOptions) -> Result<Self, Error> {
        if path.is_dir() {
            return Ok(Self::new(
                path,
                Store::Directory(Directory::init(path, vm, options.overwrite)?),
                None,
            ));
        }
        let file = DirectFile::open(path, true)?;
        let notice = file.notice();
        let sector_size = options.sector_size.unwrap_or(file.sector_size() as u32);
        let header = Header { vm, sector_size, slots: options.slots };
        let disk = Disk::init(path, file, header, options.overwrite)?;
        Ok(Self::new(path, Store::Disk(disk), notice))
    }

    fn new(path: &Path, store: Store, notice: Option<Notice>) -> Self {
        Self { path: path.to_owned(), store, notice, suspect: false }
    }

    /// Opens the arbiter at `path`, a directory, file or block device.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Denied`], [`Error::NotInitialised`], [`Error::Unsupported`] or
    /// [`Error::Unreachable`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Ok(Self::new(path, Store::Directory(Directory::open(path)?), None));
        }
        let file = DirectFile::open(path, false)?;
        let notice = file.notice();
        Ok(Self::new(path, Store::Disk(Disk::open(path, file)?), notice))
    }

    /// Whose arbiter this is.
    #[must_use]
    pub fn vm(&self) -> VmId {
        match &self.store {
            Store::Disk(disk) => disk.vm(),
            Store::Directory(directory) => directory.vm(),
        }
    }

    /// What the user should know about how it was opened.
    #[must_use]
    pub fn notice(&self) -> Option<Notice> {
        self.notice
    }

    /// What the arbiter remembers. Writes nothing.
    ///
    /// # Errors
    /// [`Error::Unreachable`] and its kin. Damage is part of the answer, not an error.
    pub fn show(&mut self) -> Result<State, Error> {
        self.reopen_if_suspect()?;
        let state = match &mut self.store {
            Store::Disk(disk) => disk.show(),
            Store::Directory(directory) => directory.show(),
        };
        self.suspect = state.is_err();
        state
    }

    fn reopen_if_suspect(&mut self) -> Result<(), Error> {
        if self.suspect {
            let (expected, fresh) = (self.vm(), Self::open(&self.path)?);
            if fresh.vm() != expected {
                return Err(Error::WrongVm { path: self.path.clone(), found: fresh.vm(), expected });
            }
            *self = fresh;
        }
        Ok(())
    }

    /// Claims a generation: the test-and-set. Blocks; sleeps between tries when the other side claims at the same
    /// moment, for about four seconds in all at worst, then answers [`Verdict::Contended`].
    ///
    /// # Errors
    /// After an error the next call opens the path anew, so that waiting and repeating is all there is to do.
    /// [`Error::WrongVm`], [`Error::GenerationZero`]: nothing was claimed. [`Error::Unreachable`] and other I/O
    /// errors, [`Error::Corrupt`]: it is not known whether the claim took effect. After no error may the caller
    /// run alone.
    pub fn claim(&mut self, claim: &Claim) -> Result<Verdict, Error> {
        self.claim_with(claim, &mut std::thread::sleep)
    }

    /// [`Arbiter::claim`], with `wait` called instead of sleeping.
    ///
    /// # Errors
    /// As for [`Arbiter::claim`].
    pub fn claim_with(&mut self, claim: &Claim, wait: &mut dyn FnMut(Duration)) -> Result<Verdict, Error> {
        if claim.vm != self.vm() {
            return Err(Error::WrongVm { path: self.path.clone(), found: self.vm(), expected: claim.vm });
        }
        if claim.generation == 0 {
            return Err(Error::GenerationZero);
        }
        self.reopen_if_suspect()?;
        let incarnation = random().map_err(Error::Random)?;
        let backoff = Backoff::new(incarnation, wait);
        let verdict = match &mut self.store {
            Store::Disk(disk) => disk.claim(*claim, incarnation, backoff),
            Store::Directory(directory) => directory.claim(*claim, incarnation, backoff),
        };
        self.suspect = verdict.is_err();
        verdict
    }
}

/// A random number from the operating system.
fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the pointer and length are those of `bytes`, which outlives the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match got {
        8 => Ok(u64::from_ne_bytes(bytes)),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::Interrupted.into()),
    }
}
