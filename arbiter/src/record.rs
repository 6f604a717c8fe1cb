//! The bytes on storage: one fixed layout of 512 bytes, little-endian, for all records.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TANDEMAR` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | kind: 1 header, 2 cell, 3 claim |
//! | 12 | 4 | place: the index of the sector this record was meant for |
//! | 16 | 16 | VM id |
//! | 32 | 8 | generation; 0 in a header and in a cell that was never claimed |
//! | 40 | 24 | cell: promised ballot (round 8, incarnation 8, side 1, present 1, zero 6) |
//! | 64 | 24 | cell: accepted ballot, the same |
//! | 88 | 32 | cell, claim: token 16, milliseconds since 1970 8, side 1, present 1, zero 6 |
//! | 120 | 8 | header: bytes in a sector 4, slots in the ring 4 |
//! | 128 | 380 | zero |
//! | 508 | 4 | crc32c of bytes 0 to 507 |
//!
//! A record that does not read back whole (torn, rotten, blank, written for another place or VM) is a
//! [`Defect`], never a value. A blank sector is a defect too: `init` writes every sector, so that a device
//! that lost its contents is not mistaken for one where nobody has claimed.

use crate::claim::{Claim, Side, Token, VmId};
use crate::paxos::{Accepted, Ballot, Block};

/// Bytes in a record: the smallest sector there is.
pub const RECORD_LEN: usize = 512;

/// The version of the layout written here, and the only one read.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"TANDEMAR";
const CRC_AT: usize = RECORD_LEN - 4;
const KIND_HEADER: u8 = 1;
const KIND_CELL: u8 = 2;
const KIND_CLAIM: u8 = 3;

/// Why the bytes of a sector or file are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Defect {
    /// All bytes are zero: never initialised, or discarded by the device.
    #[error("blank")]
    Blank,
    /// Fewer than [`RECORD_LEN`] bytes.
    #[error("cut short")]
    Short,
    /// Some other data.
    #[error("not an arbiter's record")]
    Magic,
    /// A torn write or bit rot.
    #[error("checksum mismatch")]
    Checksum,
    /// A whole record of a version this program does not know.
    #[error("layout version {0}, this program reads version {VERSION}")]
    Version(u16),
    /// A whole record of another kind.
    #[error("record of another kind")]
    Kind,
    /// A whole record that was meant for another sector: a misdirected write or read.
    #[error("record of another sector")]
    Place,
    /// A whole record of another virtual machine.
    #[error("record of VM {0}")]
    OtherVm(VmId),
    /// A whole record that contradicts itself.
    #[error("contradicts itself")]
    Field,
}

/// What `init` writes first in the file: whose arbiter this is, and its geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whose arbiter this is.
    pub vm: VmId,
    /// Bytes in a sector: 512 or 4096. 0 in a directory.
    pub sector_size: u32,
    /// Generations the ring has room for. 0 in a directory.
    pub slots: u32,
}

/// One sector of the ring: a Disk Paxos block and the generation that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// Whose arbiter this is.
    pub vm: VmId,
    /// The generation, and what its contender wrote; `None`: never claimed.
    pub content: Option<(u64, Block)>,
}

impl Header {
    /// The bytes of the header in copy `place`.
    #[must_use]
    pub fn encode(&self, place: u32) -> [u8; RECORD_LEN] {
        let mut raw = envelope(KIND_HEADER, place, self.vm, 0);
        put(&mut raw, 120, &self.sector_size.to_le_bytes());
        put(&mut raw, 124, &self.slots.to_le_bytes());
        seal(raw)
    }

    /// Reads the header in copy `place`. The geometry is as stored: whoever uses it checks it.
    ///
    /// # Errors
    /// The bytes are not a header.
    pub fn decode(raw: &[u8], place: u32) -> Result<Self, Defect> {
        let (raw, vm, _) = open(raw, KIND_HEADER, place)?;
        Ok(Self {
            vm,
            sector_size: u32::from_le_bytes(array(raw, 120)),
            slots: u32::from_le_bytes(array(raw, 124)),
        })
    }
}

impl Cell {
    /// The bytes of this cell as sector `place` of the ring.
    #[must_use]
    pub fn encode(&self, place: u32) -> [u8; RECORD_LEN] {
        let generation = self.content.map_or(0, |(generation, _)| generation);
        let mut raw = envelope(KIND_CELL, place, self.vm, generation);
        if let Some((_, block)) = self.content {
            put_ballot(&mut raw, 40, block.promised);
            if let Some(accepted) = block.accepted {
                put_ballot(&mut raw, 64, accepted.ballot);
                put_claim(&mut raw, &accepted.claim);
            }
        }
        seal(raw)
    }

    /// Reads sector `place` of the ring of `vm`.
    ///
    /// # Errors
    /// The bytes are not a cell of this place and VM.
    pub fn decode(raw: &[u8], place: u32, vm: VmId) -> Result<Self, Defect> {
        let (raw, found, generation) = open(raw, KIND_CELL, place)?;
        if found != vm {
            return Err(Defect::OtherVm(found));
        }
        let promised = ballot(raw, 40)?;
        let accepted = match (ballot(raw, 64)?, claim(raw, vm, generation)?) {
            (Some(ballot), Some(claim)) => Some(Accepted { ballot, claim }),
            (None, None) => None,
            _ => return Err(Defect::Field),
        };
        let content = match (generation, promised, accepted) {
            (0, None, None) => None,
            (1.., Some(promised), accepted) if accepted.is_none_or(|a| a.ballot <= promised) => {
                Some((generation, Block { promised, accepted }))
            }
            _ => return Err(Defect::Field),
        };
        Ok(Self { vm, content })
    }
}

impl Claim {
    /// The bytes of a claim file in a directory.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut raw = envelope(KIND_CLAIM, 0, self.vm, self.generation);
        put_claim(&mut raw, self);
        seal(raw)
    }

    /// Reads the claim file of `generation` of `vm`.
    ///
    /// # Errors
    /// The bytes are not a claim of this generation and VM.
    pub fn decode(raw: &[u8], vm: VmId, generation: u64) -> Result<Self, Defect> {
        let (raw, found, of) = open(raw, KIND_CLAIM, 0)?;
        if found != vm {
            return Err(Defect::OtherVm(found));
        }
        if of != generation {
            return Err(Defect::Place);
        }
        claim(raw, vm, generation)?.ok_or(Defect::Field)
    }
}

/// The generation field of what may be a record, unchecked; 0 if it is cut short.
#[must_use]
pub fn unchecked_generation(raw: &[u8]) -> u64 {
    raw.first_chunk().map_or(0, |raw| u64::from_le_bytes(array(raw, 32)))
}

type Raw = [u8; RECORD_LEN];

fn put(raw: &mut Raw, at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

fn array<const N: usize>(raw: &Raw, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

fn envelope(kind: u8, place: u32, vm: VmId, generation: u64) -> Raw {
    let mut raw = [0; RECORD_LEN];
    put(&mut raw, 0, &MAGIC);
    put(&mut raw, 8, &VERSION.to_le_bytes());
    raw[10] = kind;
    put(&mut raw, 12, &place.to_le_bytes());
    put(&mut raw, 16, &vm.0);
    put(&mut raw, 32, &generation.to_le_bytes());
    raw
}

fn seal(mut raw: Raw) -> Raw {
    let crc = crc32c::crc32c(&raw[..CRC_AT]);
    put(&mut raw, CRC_AT, &crc.to_le_bytes());
    raw
}

/// Checks all that records have in common. The checksum comes before every field but the magic, so that
/// no field of a torn record is believed.
fn open(raw: &[u8], kind: u8, place: u32) -> Result<(&Raw, VmId, u64), Defect> {
    let raw: &Raw = raw.first_chunk().ok_or(Defect::Short)?;
    if raw.iter().all(|byte| *byte == 0) {
        return Err(Defect::Blank);
    }
    if raw[..8] != MAGIC {
        return Err(Defect::Magic);
    }
    if crc32c::crc32c(&raw[..CRC_AT]) != u32::from_le_bytes(array(raw, CRC_AT)) {
        return Err(Defect::Checksum);
    }
    let version = u16::from_le_bytes(array(raw, 8));
    if version != VERSION {
        return Err(Defect::Version(version));
    }
    if raw[10] != kind {
        return Err(Defect::Kind);
    }
    if u32::from_le_bytes(array(raw, 12)) != place {
        return Err(Defect::Place);
    }
    Ok((raw, VmId(array(raw, 16)), u64::from_le_bytes(array(raw, 32))))
}

/// A side and a presence byte: `None` when absent.
fn side(raw: &Raw, at: usize) -> Result<Option<Side>, Defect> {
    match raw[at + 1] {
        0 => Ok(None),
        1 => Side::from_index(raw[at]).map(Some).ok_or(Defect::Field),
        _ => Err(Defect::Field),
    }
}

fn put_ballot(raw: &mut Raw, at: usize, ballot: Ballot) {
    put(raw, at, &ballot.round.to_le_bytes());
    put(raw, at + 8, &ballot.incarnation.to_le_bytes());
    put(raw, at + 16, &[ballot.side.index() as u8, 1]);
}

fn ballot(raw: &Raw, at: usize) -> Result<Option<Ballot>, Defect> {
    Ok(side(raw, at + 16)?.map(|side| Ballot {
        round: u64::from_le_bytes(array(raw, at)),
        side,
        incarnation: u64::from_le_bytes(array(raw, at + 8)),
    }))
}

fn put_claim(raw: &mut Raw, claim: &Claim) {
    put(raw, 88, &claim.token.0);
    put(raw, 104, &claim.time_ms.to_le_bytes());
    put(raw, 112, &[claim.side.index() as u8, 1]);
}

fn claim(raw: &Raw, vm: VmId, generation: u64) -> Result<Option<Claim>, Defect> {
    Ok(side(raw, 112)?.map(|side| Claim {
        vm,
        generation,
        side,
        token: Token(array(raw, 88)),
        time_ms: u64::from_le_bytes(array(raw, 104)),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VM: VmId = VmId([7; 16]);

    fn any_side() -> impl Strategy<Value = Side> {
        prop_oneof![Just(Side::Primary), Just(Side::Backup)]
    }

    prop_compose! {
        fn any_ballot()(round: u64, side in any_side(), incarnation: u64) -> Ballot {
            Ballot { round, side, incarnation }
        }
    }

    prop_compose! {
        fn any_claim()(generation in 1u64.., side in any_side(), token: [u8; 16], time_ms: u64) -> Claim {
            Claim { vm: VM, generation, side, token: Token(token), time_ms }
        }
    }

    prop_compose! {
        fn any_cell()(
            claim in any_claim(), first in any_ballot(), second in any_ballot(), accepted: bool, vacant: bool,
        ) -> Cell {
            let (low, high) = (first.min(second), first.max(second));
            let accepted = accepted.then_some(Accepted { ballot: low, claim });
            let block = Block { promised: high, accepted };
            Cell { vm: VM, content: (!vacant).then_some((claim.generation, block)) }
        }
    }

    proptest! {
        #[test]
        fn a_cell_reads_back_as_written(cell in any_cell(), place: u32) {
            prop_assert_eq!(Cell::decode(&cell.encode(place), place, VM), Ok(cell));
        }

        #[test]
        fn a_claim_reads_back_as_written(claim in any_claim()) {
            prop_assert_eq!(Claim::decode(&claim.encode(), VM, claim.generation), Ok(claim));
        }

        #[test]
        fn one_flipped_bit_is_a_defect(cell in any_cell(), bit in 0..RECORD_LEN * 8) {
            let mut raw = cell.encode(3);
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Cell::decode(&raw, 3, VM).is_err());
        }

        /// The first `cut` bytes are new and the rest old: whatever reads back is one of the two, never a mix.
        #[test]
        fn a_torn_write_is_old_or_new_or_a_defect(
            old in any_cell(), new in any_cell(), cut in 0..=RECORD_LEN,
        ) {
            let mut raw = old.encode(3);
            raw[..cut].copy_from_slice(&new.encode(3)[..cut]);
            if let Ok(read) = Cell::decode(&raw, 3, VM) {
                prop_assert!(read == old || read == new);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut raw in proptest::collection::vec(any::<u8>(), 0..600), seal_it: bool) {
            if seal_it && let Some(first) = raw.first_chunk_mut::<RECORD_LEN>() {
                first[..8].copy_from_slice(&MAGIC);
                *first = seal(*first);
            }
            let _ = Cell::decode(&raw, 0, VM);
            let _ = Header::decode(&raw, 0);
            let _ = Claim::decode(&raw, VM, 1);
        }
    }

    fn cell() -> Cell {
        let ballot = Ballot { round: 1, side: Side::Backup, incarnation: 9 };
        let claim = Claim { vm: VM, generation: 4, side: Side::Backup, token: Token([1; 16]), time_ms: 5 };
        Cell {
            vm: VM,
            content: Some((4, Block { promised: ballot, accepted: Some(Accepted { ballot, claim }) })),
        }
    }

    #[test]
    fn each_defect_has_its_name() {
        let raw = cell().encode(3);
        assert_eq!(Cell::decode(&[0; RECORD_LEN], 3, VM), Err(Defect::Blank));
        assert_eq!(Cell::decode(&raw[1..], 3, VM), Err(Defect::Short));
        assert_eq!(Cell::decode(&[1; RECORD_LEN], 3, VM), Err(Defect::Magic));
        assert_eq!(Cell::decode(&raw, 2, VM), Err(Defect::Place));
        assert_eq!(Cell::decode(&raw, 3, VmId([8; 16])), Err(Defect::OtherVm(VM)));
        assert_eq!(Header::decode(&raw, 3), Err(Defect::Kind));
        let edited = |at: usize, byte: u8| {
            let mut raw = raw;
            raw[at] = byte;
            Cell::decode(&seal(raw), 3, VM)
        };
        assert_eq!(edited(8, 2), Err(Defect::Version(2)));
        assert_eq!(edited(40, 0), Err(Defect::Field), "accepted above promised");
        assert_eq!(edited(32, 0), Err(Defect::Field), "a block without generation");
        assert_eq!(edited(112, 2), Err(Defect::Field), "a third side");
        assert_eq!(edited(113, 0), Err(Defect::Field), "a ballot accepted without claim");
    }

    /// The layout is a contract between two hosts, whatever their builds: bytes, not only round trips.
    #[test]
    fn the_layout_is_fixed() {
        let raw = cell().encode(3);
        assert_eq!(raw[..16], *b"TANDEMAR\x01\x00\x02\x00\x03\x00\x00\x00");
        assert_eq!(raw[32..40], 4u64.to_le_bytes());
        assert_eq!(raw[40..58], [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(raw[64..82], raw[40..58]);
        assert_eq!(raw[88..104], [1; 16]);
        assert_eq!(raw[104..114], [5, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert!(raw[114..CRC_AT].iter().all(|byte| *byte == 0));
        assert_eq!(u32::from_le_bytes(array(&raw, CRC_AT)), crc32c::crc32c(&raw[..CRC_AT]));
    }
}
