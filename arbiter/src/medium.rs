//! Sectors of a file or block device, past the page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::error::Error;
use crate::state::Notice;

/// Alignment that satisfies O_DIRECT on every device.
const ALIGN: usize = 4096;

/// Bytes in memory that start at a multiple of 4096, as O_DIRECT demands.
#[derive(Debug)]
pub(crate) struct Aligned {
    /// Longer than needed, so that an aligned part of the right length lies within.
    backing: Vec<u8>,
    length: usize,
}

impl Aligned {
    /// `length` zero bytes.
    pub(crate) fn new(length: usize) -> Self {
        Self { backing: vec![0; length + ALIGN], length }
    }

    fn start(&self) -> usize {
        let address = self.backing.as_ptr().addr();
        address.next_multiple_of(ALIGN) - address
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let start = self.start();
        &self.backing[start..start + self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        let end = start + self.length;
        &mut self.backing[start..end]
    }
}

/// What Disk Paxos needs of a device. Buffers are aligned, lengths and offsets multiples of the sector size.
pub(crate) trait Medium {
    /// The smallest unit that can be written, in bytes.
    fn sector_size(&self) -> usize;
    /// Fills `buffer`; `UnexpectedEof` at the end of the device.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes; durable when it returns without error. After an error nothing is known.
    fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()>;
    /// Whether this is the length in bytes.
    fn ends_at(&self, length: u64) -> io::Result<bool>;
    /// Makes room for `length` bytes, and keeps a longer file as it is; `false` when the device is smaller.
    fn grow(&mut self, length: u64) -> io::Result<bool>;
}

/// A file or block device opened with O_DIRECT, where that is possible, and synchronous writes.
#[derive(Debug)]
pub(crate) struct DirectFile {
    file: File,
    sector_size: usize,
    block_device: bool,
    notice: Option<Notice>,
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl DirectFile {
    /// Opens what is at `path`; makes a new file if `create` is set and there is nothing.
    pub(crate) fn open(path: &Path, create: bool) -> Result<Self, Error> {
        let failed = |error| Error::from_io(path, error);
        let kind = match path.metadata() {
            Ok(metadata) => Some(metadata.file_type()),
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let block_device = kind.is_some_and(|kind| kind.is_block_device());
        if kind.is_some_and(|kind| !kind.is_file() && !kind.is_block_device()) {
            let why = "it must be a file, a block device or a directory".into();
            return Err(Error::Unsupported { path: path.to_owned(), why });
        }
        let open = |flags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(kind.is_none())
                .mode(0o600)
                .custom_flags(flags)
                .open(path)
        };
        let direct = open(libc::O_DIRECT | libc::O_DSYNC);
        let (file, notice) = match direct {
            Ok(file) => (file, None),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (buffered(path).map_err(failed)?, Some(Notice::Buffered))
            }
            Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                let directory = directory_of(path).to_owned();
                return Err(Error::NoDirectory { path: path.to_owned(), directory });
            }
            Err(error) => return Err(failed(error)),
        };
        let mut opened = Self { file, sector_size: 512, block_device, notice };
        if kind.is_none() {
            // The directory entry must survive a crash as the contents do.
            File::open(directory_of(path)).and_then(|dir| dir.sync_all()).map_err(failed)?;
        }
        if create && !block_device && opened.ends_at(0).map_err(failed)? {
            // Reads past the end succeed whatever their alignment, and would tell nothing of the sector size.
            opened.file.set_len(4 * ALIGN as u64).map_err(failed)?;
        }
        if opened.notice.is_none() {
            opened.detect_sector_size(path).map_err(failed)?;
        }
        Ok(opened)
    }

    /// Finds the sector size by trying; what a device lists is no proof.
    fn detect_sector_size(&mut self, path: &Path) -> io::Result<()> {
        let mut buffer = Aligned::new(ALIGN);
        for size in [512, ALIGN] {
            match self.file.read_at(&mut buffer.bytes_mut()[..size], size as u64) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => {
                    self.sector_size = size;
                    return other.map(drop);
                }
            }
        }
        // Some file systems take the flag when opened and refuse it when read.
        self.file = buffered(path)?;
        self.notice = Some(Notice::Buffered);
        Ok(())
    }

    /// What the user should know about how it was opened.
    pub(crate) fn notice(&self) -> Option<Notice> {
        self.notice
    }
}

/// Opens without O_DIRECT. An attempt to create the file with O_DIRECT may have created it before it failed.
fn buffered(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_SYNC).open(path)
}

impl Medium for DirectFile {
    fn sector_size(&self) -> usize {
        self.sector_size
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buffer, offset)
    }

    fn ends_at(&self, length: u64) -> io::Result<bool> {
        Ok((&self.file).seek(SeekFrom::End(0))? == length)
    }

    fn grow(&mut self, length: u64) -> io::Result<bool> {
        let present = self.file.seek(SeekFrom::End(0))?;
        if present >= length {
            return Ok(true);
        }
        if self.block_device {
            return Ok(false);
        }
        self.file.set_len(length)?;
        self.file.sync_all()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_wherever_they_move() {
        for length in [512, 4096, 32768] {
            let mut buffers: Vec<_> = (0..8).map(|_| Aligned::new(length)).collect();
            for buffer in &mut buffers {
                buffer.bytes_mut()[0] = 7;
                assert_eq!(buffer.bytes().as_ptr().addr() % ALIGN, 0);
                assert_eq!((buffer.bytes().len(), buffer.bytes()[0]), (length, 7));
            }
        }
    }

    #[test]
    fn a_file_is_opened_past_the_page_cache_or_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = DirectFile::open(&dir.path().join("f"), true).expect("opens");
        println!("sector size {}, notice {:?}", file.sector_size(), file.notice());
        assert!(matches!(file.sector_size(), 512 | 4096));
    }

    #[test]
    fn what_is_no_storage_is_refused() {
        let error = DirectFile::open(Path::new("/dev/null"), false).expect_err("a character device");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let error = DirectFile::open(Path::new("/nonexistent/arbiter"), false).expect_err("nothing there");
        assert!(matches!(error, Error::Missing { .. }), "{error}");
    }
}
