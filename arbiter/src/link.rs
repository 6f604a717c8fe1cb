//! One file per generation in a directory, made by `link(2)`: exactly one of all who link to a name succeeds,
//! on every local file system and on NFS.
//!
//! | name | contents |
//! |---|---|
//! | `arbiter` | header |
//! | `gen-<generation, 20 digits>` | the winner's claim |
//! | `claim-<generation, 20 digits>-<token>-<incarnation>` | a claim about to be linked |
//!
//! A claim is written to a file of its own and synced before the link is tried, so that what the link makes
//! visible is whole. What `link` returns is not believed: over NFS a reply can be lost and the repeated request
//! refused as already there. What counts is the token in the generation's file. Winner and loser alike sync
//! the directory before they say what they read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::backoff::Backoff;
use crate::claim::{Claim, Verdict, VmId};
use crate::error::Error;
use crate::record::{Defect, Header, RECORD_LEN};
use crate::state::{Backend, State};

/// Generations kept; a winner removes older ones.
pub(crate) const KEPT: u64 = 16;

const HEADER: &str = "arbiter";
const WON: &str = "gen-";
const TRIED: &str = "claim-";

/// An opened directory arbiter.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    vm: VmId,
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let not_initialised = |defect| Error::NotInitialised { path: path.to_owned(), defect };
        match fs::read(path.join(HEADER)) {
            Ok(raw) => {
                let header = Header::decode(&raw, 0).map_err(not_initialised)?;
                Ok(Self { path: path.to_owned(), vm: header.vm })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_initialised(Defect::Blank)),
            Err(error) => Err(Error::from_io(path, error)),
        }
    }

    /// Makes a new arbiter without claims in an existing directory.
    pub(crate) fn init(path: &Path, vm: VmId, overwrite: bool) -> Result<Self, Error> {
        let arbiter = Self { path: path.to_owned(), vm };
        let failed = |error| arbiter.failed(error);
        match Self::open(path) {
            _ if overwrite => {}
            Ok(found) => return Err(Error::AlreadyInitialised { path: path.to_owned(), vm: found.vm }),
            Err(Error::NotInitialised { defect: Defect::Blank, .. })
                if arbiter.names().map_err(failed)?.is_empty() => {}
            Err(Error::NotInitialised { .. }) => return Err(Error::NotEmpty { path: path.to_owned() }),
            Err(error) => return Err(error),
        }
        arbiter.replace(Header { vm, sector_size: 0, slots: 0 }).map_err(failed)?;
        Ok(arbiter)
    }

    /// The old header goes first and the new one comes last: an interrupted `init` leaves no arbiter.
    fn replace(&self, header: Header) -> io::Result<()> {
        let path = self.path.join(HEADER);
        remove(&path)?;
        self.sync()?;
        for (name, _) in self.names()? {
            remove(&self.path.join(name))?;
        }
        let fresh = self.path.join(format!("{HEADER}-{}", header.vm));
        remove(&fresh)?;
        write_new(&fresh, &header.encode(0))?;
        let linked = fs::hard_link(&fresh, &path);
        remove(&fresh)?;
        linked?;
        self.sync()
    }

    pub(crate) fn vm(&self) -> VmId {
        self.vm
    }

    /// Claims as in [`crate::Arbiter::claim`].
    pub(crate) fn claim(
        &mut self,
        claim: Claim,
        incarnation: u64,
        backoff: Backoff<'_>,
    ) -> Result<Verdict, Error> {
        if let Some(verdict) = self.answer(&claim)? {
            return Ok(verdict);
        }
        let Claim { generation, token, .. } = claim;
        let own = self.path.join(format!("{TRIED}{generation:020}-{token}-{incarnation:016x}"));
        let tried = write_new(&own, &claim.encode())
            .map_err(|error| self.failed(error))
            .and_then(|()| self.link(&own, &claim, backoff));
        let removed = remove(&own);
        let verdict = tried?;
        if verdict == Verdict::Won && removed.is_ok() {
            self.forget_before(generation.saturating_sub(KEPT - 1));
        }
        Ok(verdict)
    }

    /// Links until the generation's file is there, whoever made it.
    fn link(&self, own: &Path, claim: &Claim, mut backoff: Backoff<'_>) -> Result<Verdict, Error> {
        loop {
            let linked = fs::hard_link(own, self.won(claim.generation));
            if let Some(verdict) = self.answer(claim)? {
                return Ok(verdict);
            }
            // Not there. Either no link was made, or it was and is not visible yet.
            let links = fs::metadata(own).map_err(|error| self.failed(error))?.nlink();
            if let Err(error) = linked
                && links < 2
            {
                let hopeless = [libc::EPERM, libc::EOPNOTSUPP, libc::EMLINK, libc::EXDEV];
                if error.raw_os_error().is_some_and(|code| hopeless.contains(&code)) {
                    let why = format!("its file system makes no hard links ({error}); use a file instead");
                    return Err(Error::Unsupported { path: self.path.clone(), why });
                }
                if error.kind() != io::ErrorKind::AlreadyExists {
                    return Err(self.failed(error));
                }
            }
            if let Err(retry_after) = backoff.pause() {
                return Ok(Verdict::Contended { retry_after });
            }
        }
    }

    /// The verdict, if there is one already, once it can no longer be lost.
    ///
    /// The look for later generations comes last: when this generation's file was removed as too old, and then
    /// made anew by a process that slept through it, a later one is there.
    fn answer(&self, claim: &Claim) -> Result<Option<Verdict>, Error> {
        let decided = self.read(claim.generation)?;
        if decided.is_some() {
            self.sync().map_err(|error| self.failed(error))?;
        }
        let names = self.names().map_err(|error| self.failed(error))?;
        let newest = names.iter().filter(|(name, _)| name.starts_with(WON)).map(|(_, of)| *of).max();
        Ok(match (newest, decided) {
            (Some(by), _) if by > claim.generation => Some(Verdict::Superseded { by }),
            (_, Some(decided)) => Some(Verdict::of(decided, claim.token)),
            (_, None) => None,
        })
    }

    /// What the directory holds.
    pub(crate) fn show(&self) -> Result<State, Error> {
        let mut state = State {
            vm: self.vm,
            backend: Backend::Directory,
            claims: Vec::new(),
            undecided: Vec::new(),
            damage: Vec::new(),
        };
        let mut names = self.names().map_err(|error| self.failed(error))?;
        names.sort_unstable_by_key(|(_, generation)| *generation);
        for (name, generation) in names {
            if name.starts_with(TRIED) {
                state.undecided.push(generation);
                continue;
            }
            match self.read(generation) {
                Ok(claim) => state.claims.extend(claim),
                Err(Error::Corrupt { defect, .. }) => state.damage.push(format!("{name}: {defect}")),
                Err(error) => return Err(error),
            }
        }
        state.undecided.dedup();
        state
            .undecided
            .retain(|generation| !state.claims.iter().any(|claim| claim.generation == *generation));
        Ok(state)
    }

    fn won(&self, generation: u64) -> PathBuf {
        self.path.join(format!("{WON}{generation:020}"))
    }

    /// The winner of a generation, if there is one.
    fn read(&self, generation: u64) -> Result<Option<Claim>, Error> {
        match fs::read(self.won(generation)) {
            Ok(raw) => Claim::decode(&raw, self.vm, generation).map(Some).map_err(|defect| Error::Corrupt {
                path: self.path.clone(),
                what: format!("the claim of generation {generation}"),
                defect,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The names of claims won and tried, with their generations.
    fn names(&self) -> io::Result<Vec<(String, u64)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let rest = name.strip_prefix(WON).or_else(|| name.strip_prefix(TRIED));
            let generation = rest.and_then(|rest| rest.get(..20)).and_then(|digits| digits.parse().ok());
            names.extend(generation.map(|generation| (name, generation)));
        }
        Ok(names)
    }

    /// Removes what generations before `first` left. What fails is left to the next winner.
    fn forget_before(&self, first: u64) {
        for (name, generation) in self.names().unwrap_or_default() {
            if generation < first {
                let _ = remove(&self.path.join(name));
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// A file missing after the header was read means that the directory is: its storage went away.
    fn failed(&self, error: io::Error) -> Error {
        Error::from_io(&self.path, error)
    }
}

fn write_new(path: &Path, raw: &[u8; RECORD_LEN]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(raw)?;
    file.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
