//! The log file of a recording.
//!
//! A sequence of records, each with a 16-byte header (magic, kind, length, crc32c) and a payload padded
//! to 16 bytes: a head, then batches and blocks of the exit trace as they came, then an end. A file
//! without an end is a recording that was cut off; it can be replayed, and says so.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

use crate::machine::boot::SEED_LEN;
use crate::replay::batch::{Batch, SCHEMA};
use crate::replay::memory_sum::PageSum;

const MAGIC: u32 = u32::from_le_bytes(*b"TREC");
const HEADER: usize = 16;
/// Longest record that is read, in bytes.
const LONGEST: u32 = 1 << 30;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A [`Head`].
    Head,
    /// A [`Batch`].
    Batch,
    /// A block of the exit trace.
    Trace,
    /// An [`End`].
    End,
}

impl RecordKind {
    const ALL: [Self; 4] = [Self::Head, Self::Batch, Self::Trace, Self::End];

    fn of(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

/// What was recorded.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The layout of the rest: [`SCHEMA`] of the version that wrote it.
    pub schema: String,
    /// The config file, as text.
    pub config: String,
    /// Where the config file was, for its relative paths.
    pub config_path: String,
    /// Identity of the guest: names, digests, texts.
    pub identity: Vec<(String, u64, String)>,
    /// Seed of all the guest's randomness.
    pub seed: [u8; SEED_LEN],
    /// Unix seconds at power-on.
    pub wall_clock: u64,
}

/// How the recording ended.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Points in all.
    pub point: u64,
    /// Digest of all exits.
    pub digest: u64,
    /// Sums of all state but memory.
    pub sums: Vec<(String, u64)>,
    /// Sums of memory.
    pub pages: Vec<PageSum>,
}

/// A log file that cannot be written or read.
#[derive(Debug, Error)]
pub enum LogFileError {
    /// The file system refused.
    #[error("cannot {doing} the log {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something is not archivable: a bug, or no memory.
    #[error("cannot encode a record of the log")]
    Encode,
    /// The file is damaged, or not a log.
    #[error("{} is damaged or no Tandem log: {what} (record {record})", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// Number of the record, from 0.
        record: u64,
    },
    /// It was written by another version.
    #[error(
        "{} was written by a version with another log layout\n  its layout: {found}\n  this one's:  {SCHEMA}",
        path.display()
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: String,
    },
}

/// Writes a log file.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: BufWriter<File>,
    scratch: AlignedVec,
}

impl LogWriter {
    /// Creates the file, replacing an existing one, and writes the head.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(path: &Path, head: &Head) -> Result<Self, LogFileError> {
        let file = File::create(path).map_err(|source| LogFileError::Io {
            doing: "create",
            path: path.to_owned(),
            source,
        })?;
        let mut writer = Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(1 << 20, file),
            scratch: AlignedVec::new(),
        };
        let bytes = rkyv::to_bytes::<RkyvError>(head).map_err(|_| LogFileError::Encode)?;
        writer.record(RecordKind::Head, &bytes)?;
        Ok(writer)
    }

    /// Appends a record. Returns the bytes around the payload.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<usize, LogFileError> {
        let padding = payload.len().next_multiple_of(HEADER) - payload.len();
        let words = [MAGIC, kind as u32, payload.len() as u32, crc32c::crc32c(payload)];
        let result = words
            .iter()
            .try_for_each(|word| self.file.write_all(&word.to_le_bytes()))
            .and_then(|()| self.file.write_all(payload))
            .and_then(|()| self.file.write_all(&[0; HEADER][..padding]));
        match result {
            Ok(()) => Ok(HEADER + padding),
            Err(source) => Err(LogFileError::Io { doing: "write", path: self.path.clone(), source }),
        }
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn batch(&mut self, batch: &Batch) -> Result<usize, LogFileError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let bytes =
            rkyv::api::high::to_bytes_in::<_, RkyvError>(batch, scratch).map_err(|_| LogFileError::Encode)?;
        let framing = self.record(RecordKind::Batch, &bytes)?;
        self.scratch = bytes;
        Ok(framing)
    }

    /// Writes the end and closes the file.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn finish(mut self, end: &End) -> Result<(), LogFileError> {
        let bytes = rkyv::to_bytes::<RkyvError>(end).map_err(|_| LogFileError::Encode)?;
        self.record(RecordKind::End, &bytes)?;
        self.file.flush().map_err(|source| LogFileError::Io { doing: "write", path: self.path, source })
    }
}

/// Reads a log file, record by record.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: BufReader<File>,
    records: u64,
    payload: AlignedVec,
}

impl LogReader {
    /// Opens a log and reads its head.
    ///
    /// # Errors
    /// When it cannot be read, or is no log of this version.
    pub fn open(path: &Path) -> Result<(Self, Head), LogFileError> {
        let file = File::open(path).map_err(|source| LogFileError::Io {
            doing: "open",
            path: path.to_owned(),
            source,
        })?;
        let mut reader = Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 20, file),
            records: 0,
            payload: AlignedVec::new(),
        };
        if reader.next_record()? != Some(RecordKind::Head) {
            return Err(reader.damaged("it does not begin with a head"));
        }
        let head: Head = rkyv::from_bytes::<Head, RkyvError>(&reader.payload)
            .map_err(|_| reader.damaged("the head cannot be read"))?;
        if head.schema != SCHEMA {
            return Err(LogFileError::Schema { path: reader.path, found: head.schema });
        }
        Ok((reader, head))
    }

    /// An error that says what is wrong at the last record.
    #[must_use]
    pub fn damaged(&self, what: &'static str) -> LogFileError {
        LogFileError::Damaged { path: self.path.clone(), what, record: self.records }
    }

    /// Reads the next record; `None` at the end of the file, also where a record is cut off there.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn next_record(&mut self) -> Result<Option<RecordKind>, LogFileError> {
        let mut header = [0; HEADER];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (magic, kind, len, crc) = (word(0), word(4), word(8), word(12));
        if magic != MAGIC {
            return Err(self.damaged("a record does not begin where it should"));
        }
        let kind = RecordKind::of(kind).ok_or_else(|| self.damaged("a record of unknown kind"))?;
        if len > LONGEST {
            return Err(self.damaged("a record of impossible length"));
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize((len as usize).next_multiple_of(HEADER), 0);
        if !self.fill(&mut payload)? {
            return Ok(None);
        }
        payload.resize(len as usize, 0);
        if crc32c::crc32c(&payload) != crc {
            return Err(self.damaged("a record fails its checksum"));
        }
        self.payload = payload;
        self.records += 1;
        Ok(Some(kind))
    }

    /// The payload of the last record.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Decodes the last record as an end.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn end(&self) -> Result<End, LogFileError> {
        rkyv::from_bytes::<End, RkyvError>(&self.payload).map_err(|_| self.damaged("the end cannot be read"))
    }

    /// Fills the buffer; false at the end of the file.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, LogFileError> {
        match self.file.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(LogFileError::Io { doing: "read", path: self.path.clone(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            schema: SCHEMA.to_owned(),
            config: "name = \"x\"".to_owned(),
            config_path: "/x".to_owned(),
            identity: vec![("kernel".to_owned(), 1, "a".to_owned())],
            seed: [3; SEED_LEN],
            wall_clock: 5,
        }
    }

    #[test]
    fn records_come_back_and_a_cut_file_ends_early() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = LogWriter::create(&path, &head()).unwrap();
        writer.batch(&Batch { base: 1, horizon: 4, blob: vec![9; 33], ..Batch::default() }).unwrap();
        writer.record(RecordKind::Trace, b"abc").unwrap();
        let end = End { point: 4, ..End::default() };
        writer.finish(&end).unwrap();

        let (mut reader, found) = LogReader::open(&path).unwrap();
        assert_eq!(found, head());
        assert_eq!(reader.next_record().unwrap(), Some(RecordKind::Batch));
        let batch = rkyv::from_bytes::<Batch, RkyvError>(reader.payload()).unwrap();
        assert_eq!((batch.horizon, batch.blob.len()), (4, 33));
        assert_eq!(reader.next_record().unwrap(), Some(RecordKind::Trace));
        assert_eq!(reader.payload(), b"abc");
        assert_eq!(reader.next_record().unwrap(), Some(RecordKind::End));
        assert_eq!(reader.end().unwrap(), end);
        assert_eq!(reader.next_record().unwrap(), None);

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 20]).unwrap();
        let (mut reader, _) = LogReader::open(&path).unwrap();
        let kinds: Vec<_> = std::iter::from_fn(|| reader.next_record().unwrap()).collect();
        assert_eq!(kinds, [RecordKind::Batch, RecordKind::Trace]);
    }

    #[test]
    fn every_flipped_byte_is_noticed_or_harmless_and_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        LogWriter::create(&path, &head()).unwrap().finish(&End::default()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut noticed = 0;
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x40;
            std::fs::write(&path, &damaged).unwrap();
            noticed += usize::from(match LogReader::open(&path) {
                Err(_) => true,
                Ok((mut reader, _)) => !matches!(reader.next_record(), Ok(Some(RecordKind::End))),
            });
        }
        // Padding is not covered by a checksum.
        assert!(noticed >= bytes.len() - 2 * HEADER, "{noticed} of {}", bytes.len());
    }
}
