//! The record of every exit, for verification.
//!
//! Each deterministic exit is 24 words: what it was, what data it carried, all general registers, and
//! what was captured in the kernel before it.
//! The digest folds them; a recording made for verification also keeps them, so that a difference can be
//! named by register. A record stores only the words that changed against the exit before.

use kvm_bindings::kvm_regs;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::machine::cpu::exit::Exit;

/// Words per exit.
pub const WORD_COUNT: usize = 24;

/// Their names, in order.
pub const WORDS: [&str; WORD_COUNT] = [
    "exit kind",
    "address",
    "data",
    "port data",
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rsp",
    "rbp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "rflags",
    "captured instructions",
    "digest of captured instructions",
];

/// Number of RIP in [`WORDS`].
pub const RIP: usize = 20;

/// RFLAGS.RF: set by the CPU when an exit interrupts an instruction that will be restarted (SDM volume 3B,
/// 18.3.1.1), hence by host page faults too; not a function of the guest's past.
const RESUME_FLAG: u64 = 1 << 16;

/// One deterministic exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord(pub [u64; WORD_COUNT]);

impl Default for ExitRecord {
    fn default() -> Self {
        Self([0; WORD_COUNT])
    }
}

impl ExitRecord {
    /// The record of an exit. `port_data` is what a port write carries, else empty; `captured` is how many
    /// instructions were captured since the exit before, and the digest of all of them.
    #[must_use]
    pub fn new(exit: &Exit, port_data: &[u8], r: &kvm_regs, captured: (u64, u64)) -> Self {
        let [kind, address, data] = exit.words();
        let carried = match port_data.len() {
            0 => 0,
            1..=8 => port_data.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
            _ => xxh3_64_with_seed(port_data, 0),
        };
        Self([
            kind,
            address,
            data,
            carried,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rsp,
            r.rbp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
            r.rip,
            r.rflags & !RESUME_FLAG,
            captured.0,
            captured.1,
        ])
    }

    /// Folds the record into the digest of all exits before it.
    #[must_use]
    pub fn fold(&self, digest: u64) -> u64 {
        let mut bytes = [0; WORD_COUNT * 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        xxh3_64_with_seed(&bytes, digest)
    }

    /// Name and both values of the first word in which two records differ.
    #[must_use]
    pub fn first_difference(&self, found: &Self) -> Option<(&'static str, u64, u64)> {
        (0..WORD_COUNT).find(|&i| self.0[i] != found.0[i]).map(|i| (WORDS[i], self.0[i], found.0[i]))
    }
}

/// Appends records: a 32-bit mask of changed words, then these.
#[derive(Debug, Default)]
pub struct TraceWriter {
    last: ExitRecord,
    bytes: Vec<u8>,
}

impl TraceWriter {
    /// Appends one record.
    pub fn push(&mut self, record: &ExitRecord) {
        let mut mask = 0u32;
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        for (i, (new, old)) in record.0.iter().zip(self.last.0).enumerate() {
            if *new != old {
                mask |= 1 << i;
                self.bytes.extend_from_slice(&new.to_le_bytes());
            }
        }
        self.bytes[at..at + 4].copy_from_slice(&mask.to_le_bytes());
        self.last = *record;
    }

    /// Bytes since the last [`TraceWriter::take`].
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the bytes written so far, compressed (LZ4 with its length in front).
    pub fn take(&mut self) -> Vec<u8> {
        let packed = lz4_flex::compress_prepend_size(&self.bytes);
        self.bytes.clear();
        packed
    }
}

/// A trace that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TraceError {
    /// Not LZ4, or longer than a block can be.
    #[error("a block of the exit trace cannot be unpacked")]
    Packed,
    /// The block ends within a record.
    #[error("a block of the exit trace ends within a record")]
    Cut,
}

/// Longest block that is unpacked, in bytes.
const BLOCK_LIMIT: usize = 64 << 20;

/// Reads records back.
#[derive(Debug, Default)]
pub struct TraceReader {
    last: ExitRecord,
    bytes: Vec<u8>,
    at: usize,
}

impl TraceReader {
    /// Adds a block made by [`TraceWriter::take`].
    ///
    /// # Errors
    /// When it is damaged.
    pub fn add(&mut self, packed: &[u8]) -> Result<(), TraceError> {
        let claimed = packed.first_chunk::<4>().map_or(usize::MAX, |l| u32::from_le_bytes(*l) as usize);
        if claimed > BLOCK_LIMIT {
            return Err(TraceError::Packed);
        }
        let block = lz4_flex::decompress_size_prepended(packed).map_err(|_| TraceError::Packed)?;
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(&block);
        Ok(())
    }

    /// The next record; `None` when all blocks added so far are used up.
    ///
    /// # Errors
    /// When the bytes end within a record.
    pub fn next_record(&mut self) -> Result<Option<ExitRecord>, TraceError> {
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Ok(None);
        }
        let mask = u32::from_le_bytes(*rest.first_chunk::<4>().ok_or(TraceError::Cut)?);
        let mut words = rest[4..].chunks_exact(8);
        let mut record = self.last;
        for (i, word) in record.0.iter_mut().enumerate() {
            if mask >> i & 1 == 1 {
                let bytes = words.next().and_then(|c| c.first_chunk::<8>()).ok_or(TraceError::Cut)?;
                *word = u64::from_le_bytes(*bytes);
            }
        }
        let used = mask & ((1 << WORD_COUNT) - 1);
        self.at += 4 + 8 * used.count_ones() as usize;
        self.last = record;
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_back_as_written(
            runs in proptest::collection::vec(proptest::collection::vec(
                proptest::array::uniform24(prop_oneof![Just(0u64), any::<u64>()]), 0..20), 0..4),
        ) {
            let (mut writer, mut reader) = (TraceWriter::default(), TraceReader::default());
            for run in &runs {
                for words in run {
                    writer.push(&ExitRecord(*words));
                }
                reader.add(&writer.take()).unwrap();
                for words in run {
                    prop_assert_eq!(reader.next_record().unwrap(), Some(ExitRecord(*words)));
                }
                prop_assert_eq!(reader.next_record().unwrap(), None);
            }
        }

        #[test]
        fn damaged_blocks_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = TraceReader::default();
            if reader.add(&bytes).is_ok() {
                while let Ok(Some(_)) = reader.next_record() {}
            }
        }

        #[test]
        fn any_changed_word_changes_the_digest(
            words in proptest::array::uniform24(any::<u64>()), i in 0..WORD_COUNT, flip in 1u64..,
        ) {
            let mut other = words;
            other[i] ^= flip;
            let (a, b) = (ExitRecord(words), ExitRecord(other));
            prop_assert_ne!(a.fold(1), b.fold(1));
            prop_assert_eq!(a.first_difference(&b), Some((WORDS[i], words[i], other[i])));
        }
    }
}
