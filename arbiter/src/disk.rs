//! Disk Paxos on a file or block device.
//!
//! | offset | contents |
//! |---|---|
//! | 0 | header |
//! | 4096 | header, second copy |
//! | 8192 | primary's sectors, first copy: one per slot |
//! | then | backup's, first copy; primary's, second copy; backup's, second copy |
//!
//! Each of the four regions starts at a multiple of 4096, so that no 4096-byte physical block behind 512-byte
//! logical sectors is written by both sides or holds both copies. Generation `g` uses slot `g % slots`.

use std::io;
use std::path::{Path, PathBuf};

use crate::backoff::Backoff;
use crate::claim::{Claim, Side, Verdict, VmId};
use crate::error::Error;
use crate::medium::{Aligned, Medium};
use crate::paxos::{Accepted, Block, COPIES, Contender, Look, Sector, Step};
use crate::record::{self, Cell, Defect, Header};
use crate::state::{Backend, State};

/// Region boundary, and the size of each header's area, in bytes.
const REGION_ALIGN: usize = 4096;
/// Where the ring begins, in bytes.
const RING_AT: usize = 2 * REGION_ALIGN;
/// Bytes that must be zero before `init` writes without being told to overwrite. All common file systems and
/// volume managers have their signature in there.
const BLANK_LEN: u64 = 128 * 1024;
/// Looks at a slot with an unreadable sector, in case it is only being written.
const REREADS: usize = 3;
/// Failed writes in one claim after which the device counts as unreachable.
const FAILED_WRITES: usize = 3;

/// Where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Geometry {
    sector_size: usize,
    slots: usize,
}

impl Geometry {
    fn of(header: &Header) -> Result<Self, String> {
        let Header { sector_size, slots, .. } = *header;
        if !matches!(sector_size, 512 | 4096) {
            return Err(format!("sectors of {sector_size} bytes; they must have 512 or 4096"));
        }
        if !(2..=256).contains(&slots) {
            return Err(format!("{slots} slots; there must be 2 to 256"));
        }
        Ok(Self { sector_size: sector_size as usize, slots: slots as usize })
    }

    const fn region_len(self) -> usize {
        (self.slots * self.sector_size).next_multiple_of(REGION_ALIGN)
    }

    const fn ring_len(self) -> usize {
        2 * COPIES * self.region_len()
    }

    fn slot(self, generation: u64) -> usize {
        (generation % self.slots as u64) as usize
    }

    /// The index of a sector among all sectors of the ring.
    const fn place(self, side: Side, copy: usize, slot: usize) -> usize {
        (copy * 2 + side.index()) * self.slots + slot
    }

    /// Where a sector begins, in bytes from the start of the ring.
    const fn at(self, place: usize) -> usize {
        place / self.slots * self.region_len() + place % self.slots * self.sector_size
    }

    fn places(self) -> std::ops::Range<usize> {
        0..2 * COPIES * self.slots
    }
}

/// An opened disk arbiter.
#[derive(Debug)]
pub(crate) struct Disk<M> {
    path: PathBuf,
    medium: M,
    header: Header,
    geometry: Geometry,
    ring: Aligned,
    sector: Aligned,
}

impl<M: Medium> Disk<M> {
    /// Reads the header. `path` is for errors.
    pub(crate) fn open(path: &Path, medium: M) -> Result<Self, Error> {
        let header = read_header(&medium)
            .map_err(|error| Error::from_io(path, error))?
            .map_err(|defect| Error::NotInitialised { path: path.to_owned(), defect })?;
        Self::with_header(path, medium, header)
    }

    fn with_header(path: &Path, medium: M, header: Header) -> Result<Self, Error> {
        let unsupported = |why| Error::Unsupported { path: path.to_owned(), why };
        let geometry = Geometry::of(&header).map_err(unsupported)?;
        let needed = medium.sector_size();
        if needed > geometry.sector_size {
            return Err(unsupported(format!(
                "made for sectors of {} bytes, and this host's device has {needed}; \
                 make it with sectors of {needed} bytes",
                geometry.sector_size
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            medium,
            header,
            geometry,
            ring: Aligned::new(geometry.ring_len()),
            sector: Aligned::new(geometry.sector_size),
        })
    }

    /// Writes a new arbiter without claims. An interrupted `init` leaves no arbiter.
    pub(crate) fn init(path: &Path, medium: M, header: Header, overwrite: bool) -> Result<Self, Error> {
        let failed = |error| Error::from_io(path, error);
        let mut disk = Self::with_header(path, medium, header)?;
        if !overwrite {
            if let Ok(found) = read_header(&disk.medium).map_err(failed)? {
                return Err(Error::AlreadyInitialised { path: path.to_owned(), vm: found.vm });
            }
            if !is_blank(&disk.medium).map_err(failed)? {
                return Err(Error::NotEmpty { path: path.to_owned() });
            }
        }
        let length = (RING_AT + disk.geometry.ring_len()) as u64;
        if !disk.medium.grow(length).map_err(failed)? {
            let why = format!("too small; it must have {length} bytes");
            return Err(Error::Unsupported { path: path.to_owned(), why });
        }
        let blank = Aligned::new(RING_AT);
        disk.medium.write(blank.bytes(), 0).map_err(failed)?;
        for place in disk.geometry.places() {
            let raw = Cell { vm: header.vm, content: None }.encode(place as u32);
            let at = disk.geometry.at(place);
            disk.ring.bytes_mut()[at..at + raw.len()].copy_from_slice(&raw);
        }
        disk.medium.write(disk.ring.bytes(), RING_AT as u64).map_err(failed)?;
        let mut area = Aligned::new(REGION_ALIGN);
        for copy in 0..2u32 {
            let raw = header.encode(copy);
            area.bytes_mut()[..raw.len()].copy_from_slice(&raw);
            disk.medium.write(area.bytes(), u64::from(copy) * REGION_ALIGN as u64).map_err(failed)?;
        }
        Ok(disk)
    }

    pub(crate) fn vm(&self) -> VmId {
        self.header.vm
    }

    /// Claims as in [`crate::Arbiter::claim`].
    pub(crate) fn claim(
        &mut self,
        claim: Claim,
        incarnation: u64,
        mut backoff: Backoff<'_>,
    ) -> Result<Verdict, Error> {
        let mut contender = Contender::new(claim, incarnation);
        let mut failed_writes = 0;
        let mut step = Step::Look;
        loop {
            step = match step {
                Step::Look => contender.looked(&self.look(claim.generation)?),
                Step::Write { copy, block } => {
                    if let Err(error) = self.write(claim.generation, claim.side, copy, block) {
                        failed_writes += 1;
                        if failed_writes == FAILED_WRITES {
                            return Err(Error::from_io(&self.path, error));
                        }
                    }
                    Step::Look
                }
                Step::Preempted => match backoff.pause() {
                    Ok(()) => Step::Look,
                    Err(retry_after) => return Ok(Verdict::Contended { retry_after }),
                },
                Step::Decided(decided) => return Ok(Verdict::of(decided, claim.token)),
                Step::Superseded(by) => return Ok(Verdict::Superseded { by }),
                Step::Unreadable(side) => return Err(self.unreadable(claim.generation, side)),
            };
        }
    }

    /// What the ring holds, decided or not.
    pub(crate) fn show(&mut self) -> Result<State, Error> {
        let mut state = State {
            vm: self.header.vm,
            backend: Backend::Disk { sector_size: self.header.sector_size, slots: self.header.slots },
            claims: Vec::new(),
            undecided: Vec::new(),
            damage: Vec::new(),
        };
        self.read_ring()?;
        let mut generations = vec![0; self.geometry.slots];
        for place in self.geometry.places() {
            let newest = &mut generations[place % self.geometry.slots];
            match self.cell(place) {
                Ok(cell) => *newest = cell.content.map_or(0, |(generation, _)| generation).max(*newest),
                Err(defect) => {
                    let at = RING_AT + self.geometry.at(place);
                    state.damage.push(format!("sector at byte {at}: {defect}"));
                }
            }
        }
        generations.retain(|generation| *generation != 0);
        generations.sort_unstable();
        let before: Vec<_> = generations.iter().map(|generation| self.settled(*generation)).collect();
        self.read_ring()?;
        for (generation, before) in generations.into_iter().zip(before) {
            match self.settled(generation) {
                Some(after) if before.is_some_and(|before| before.ballot == after.ballot) => {
                    state.claims.push(after.claim);
                }
                _ => state.undecided.push(generation),
            }
        }
        Ok(state)
    }

    fn settled(&self, generation: u64) -> Option<Accepted> {
        self.interpret(generation).settled()
    }

    fn look(&mut self, generation: u64) -> Result<Look, Error> {
        self.read_ring()?;
        let mut look = self.interpret(generation);
        for _ in 0..REREADS {
            if !look.sectors.as_flattened().contains(&Sector::Unreadable) {
                break;
            }
            self.read_ring()?;
            look = self.interpret(generation);
        }
        Ok(look)
    }

    fn read_ring(&mut self) -> Result<(), Error> {
        self.medium.read(self.ring.bytes_mut(), RING_AT as u64).map_err(|error| {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                return Error::from_io(&self.path, error);
            }
            Error::Corrupt { path: self.path.clone(), what: "the ring".into(), defect: Defect::Short }
        })
    }

    /// What the last [`Disk::read_ring`] means to a contender of `generation`.
    fn interpret(&self, generation: u64) -> Look {
        let mut newest = generation;
        for place in self.geometry.places() {
            // Few sectors claim to be newer, and only of those is it worth while to check the checksum.
            if record::unchecked_generation(self.raw(place)) > newest
                && let Ok(Cell { content: Some((later, _)), .. }) = self.cell(place)
            {
                newest = later;
            }
        }
        let slot = self.geometry.slot(generation);
        let sector = |side, copy| match self.cell(self.geometry.place(side, copy, slot)) {
            Ok(Cell { content: Some((of, block)), .. }) if of == generation => Sector::Block(block),
            Ok(_) => Sector::Vacant,
            Err(_) => Sector::Unreadable,
        };
        Look { newest, sectors: Side::ALL.map(|side| std::array::from_fn(|copy| sector(side, copy))) }
    }

    fn raw(&self, place: usize) -> &[u8] {
        &self.ring.bytes()[self.geometry.at(place)..]
    }

    fn cell(&self, place: usize) -> Result<Cell, Defect> {
        Cell::decode(self.raw(place), place as u32, self.header.vm)
    }

    fn write(&mut self, generation: u64, side: Side, copy: usize, block: Block) -> io::Result<()> {
        let place = self.geometry.place(side, copy, self.geometry.slot(generation));
        let raw = Cell { vm: self.header.vm, content: Some((generation, block)) }.encode(place as u32);
        self.sector.bytes_mut()[..raw.len()].copy_from_slice(&raw);
        self.medium.write(self.sector.bytes(), (RING_AT + self.geometry.at(place)) as u64)
    }

    fn unreadable(&self, generation: u64, side: Side) -> Error {
        let place = self.geometry.place(side, 0, self.geometry.slot(generation));
        match self.cell(place) {
            Err(defect) => Error::Corrupt {
                path: self.path.clone(),
                what: format!("both sectors of the {side} in generation {generation}"),
                defect,
            },
            Ok(_) => Error::from_io(&self.path, io::Error::other("sectors were unreadable for a moment")),
        }
    }
}

/// The header, from whichever copy is whole; else the defect of the first copy.
fn read_header<M: Medium>(medium: &M) -> io::Result<Result<Header, Defect>> {
    let mut area = Aligned::new(REGION_ALIGN);
    let mut read = |copy: u32| match medium.read(area.bytes_mut(), u64::from(copy) * REGION_ALIGN as u64) {
        Ok(()) => Ok(Header::decode(area.bytes(), copy)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(Defect::Short)),
        Err(error) => Err(error),
    };
    let first = read(0)?;
    Ok(if first.is_ok() { first } else { read(1)?.or(first) })
}

/// Whether the first [`BLANK_LEN`] bytes, as far as there are any, are zero.
fn is_blank<M: Medium>(medium: &M) -> io::Result<bool> {
    let mut area = Aligned::new(REGION_ALIGN);
    for at in (0..BLANK_LEN).step_by(REGION_ALIGN) {
        match medium.read(area.bytes_mut(), at) {
            // A file that ends within this area is blank only if it ends right before it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return medium.ends_at(at),
            Err(error) => return Err(error),
            Ok(()) if area.bytes().iter().any(|byte| *byte != 0) => return Ok(false),
            Ok(()) => {}
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
