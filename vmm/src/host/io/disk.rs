//! Disk requests, carried out in order on a thread of their own.
//!
//! One at a time and in the order of their issue: two requests that race for a block are serialised by
//! that, on a primary and, after a failover, on the side that issues them again.
//!
//! A request may wait here for as long as the disk takes for those before it. So the thread looks at the lease itself: a primary that was
//! stopped, and goes on after its backup went live, would write over what that one has written. Until the lease holds again, it waits.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tandem_logchan::doorbell::Doorbell;
use tandem_logchan::ring::{self, Consumer, Producer};
use thiserror::Error;

use crate::host::config::DiskConfig;
use crate::host::leased::LeaseEnd;
use crate::host::lock;
use crate::host::vcpu::inputs::InputSource;
use crate::machine::input::DiskStatus;
use crate::machine::output::{DiskOp, DiskRequest};

/// Bytes per sector.
const SECTOR: u64 = 512;

/// Bytes of the header of a request in the ring.
const HEADER: usize = 32;

/// Bytes that are written with one look at the lease: a fraction of what a look is good for
/// ([`Timing::slack`](crate::role::timing::Timing::slack)).
const STRETCH: usize = 1 << 20;

/// Between two looks at a lease that has ended.
const LOOK: Duration = Duration::from_millis(1);

/// Room for one disk's requests in flight (8 MiB at most), twice over for what the ring skips at its end.
pub const ROOM: usize = 16 << 20;

mod op {
    pub(super) const READ: u8 = 0;
    pub(super) const WRITE: u8 = 1;
    pub(super) const FLUSH: u8 = 2;
}

/// A disk that cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open disk {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its size is not whole sectors.
    #[error("disk {} has {bytes} bytes: not a multiple of 512, or none at all", path.display())]
    Size {
        /// Its path.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
    },
    /// No thread could be started.
    #[error("cannot start the disk thread")]
    Thread(#[source] io::Error),
}

/// Sectors of the disk at `path`, a file or a block device.
///
/// # Errors
/// When it cannot be opened, or its size is not whole sectors.
pub fn sectors(path: &Path) -> Result<u64, DiskError> {
    use std::io::{Seek, SeekFrom};
    let open = |source| DiskError::Open { path: path.to_owned(), source };
    // The length in the metadata of a block device is zero; seeking to its end works for both.
    let bytes = File::open(path).and_then(|mut f| f.seek(SeekFrom::End(0))).map_err(open)?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(DiskError::Size { path: path.to_owned(), bytes });
    }
    Ok(bytes / SECTOR)
}

/// The sending end of the disk thread.
#[derive(Debug)]
pub struct Disks {
    /// Two threads of a pair issue requests, never at the same time: each only while the other has none to issue.
    ring: Mutex<Producer>,
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Disks {
    /// Opens the disks and starts the thread that works on them, writing only while `lease` holds. Completions go to
    /// `completions`.
    ///
    /// # Errors
    /// When a disk cannot be opened.
    pub fn start(
        disks: &[DiskConfig],
        completions: InputSource,
        lease: Arc<LeaseEnd>,
    ) -> Result<Self, DiskError> {
        let files = disks
            .iter()
            .map(|disk| {
                OpenOptions::new()
                    .read(true)
                    .write(!disk.read_only)
                    .open(&disk.path)
                    .map_err(|source| DiskError::Open { path: disk.path.clone(), source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (producer, consumer) = ring::ring(files.len() * ROOM);
        let bell = Arc::new(Doorbell::new());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            files,
            ring: consumer,
            completions,
            bell: Arc::clone(&bell),
            stop: Arc::clone(&stop),
            lease,
            buffer: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("tandem-disk".to_owned())
            .spawn(move || worker.work())
            .map_err(DiskError::Thread)?;
        Ok(Self { ring: Mutex::new(producer), bell, stop, thread: Some(thread) })
    }

    /// Whether all requests that were issued are done.
    #[must_use]
    pub fn are_idle(&self) -> bool {
        // A request leaves the ring when it is done.
        lock(&self.ring).used() == 0
    }

    /// Issues a request. False: there is no room, which the machine's own limits rule out.
    #[must_use]
    pub fn issue(&self, request: &DiskRequest<'_>) -> bool {
        let (op, offset, len, data): (u8, u64, u32, &[u8]) = match request.op {
            DiskOp::Read { offset, len } => (op::READ, offset, len, &[]),
            DiskOp::Write { offset, data } => (op::WRITE, offset, data.len() as u32, data),
            DiskOp::Flush => (op::FLUSH, 0, 0, &[]),
        };
        let mut ring = lock(&self.ring);
        let Ok(slot) = ring.try_reserve(HEADER + data.len()) else { return false };
        slot[0] = op;
        slot[1] = request.disk;
        slot[4..8].copy_from_slice(&len.to_le_bytes());
        slot[8..16].copy_from_slice(&request.tag.to_le_bytes());
        slot[16..24].copy_from_slice(&offset.to_le_bytes());
        slot[HEADER..].copy_from_slice(data);
        let issued = ring.commit(HEADER + data.len());
        drop(ring);
        self.bell.ring();
        issued
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported already.
            let _ = thread.join();
        }
    }
}

struct Worker {
    files: Vec<File>,
    ring: Consumer,
    completions: InputSource,
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
    lease: Arc<LeaseEnd>,
    buffer: Vec<u8>,
}

/// Writes all of `data`, whenever the lease holds. `None`: this thread is to stop before it holds again.
fn write(
    file: &File,
    mut data: &[u8],
    mut offset: u64,
    lease: &LeaseEnd,
    stop: &AtomicBool,
) -> Option<io::Result<()>> {
    while !data.is_empty() {
        let stretch = &data[..data.len().min(STRETCH)];
        let Some(made) = lease.write_at(file.as_fd(), stretch, offset) else {
            if stop.load(Ordering::Acquire) {
                return None;
            }
            std::thread::sleep(LOOK);
            continue;
        };
        match made.result {
            Ok(0) => return Some(Err(io::ErrorKind::WriteZero.into())),
            Ok(len) => (data, offset) = (&data[len..], offset + len as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(()))
}

impl Worker {
    fn work(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let seen = self.bell.look();
            if !self.work_on_one() && !self.stop.load(Ordering::Acquire) {
                self.bell.wait(seen, None);
            }
        }
    }

    /// Carries out the oldest request; false if there is none.
    fn work_on_one(&mut self) -> bool {
        let Some(bytes) = self.ring.front() else { return false };
        let Some((header, data)) = bytes.split_first_chunk::<HEADER>() else {
            let _ = self.ring.release();
            return true;
        };
        let [op, disk, _, _, l0, l1, l2, l3, rest @ ..] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let word = |at: usize| rest[at..at + 8].iter().rev().fold(0, |w, b| w << 8 | u64::from(*b));
        let (tag, offset) = (word(0), word(8));
        self.buffer.clear();
        let result = match self.files.get(usize::from(disk)) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(file) => match op {
                op::READ => {
                    self.buffer.resize(len, 0);
                    file.read_exact_at(&mut self.buffer, offset)
                }
                op::WRITE => match write(file, data, offset, &self.lease, &self.stop) {
                    Some(written) => written,
                    None => return true,
                },
                _ => file.sync_data(),
            },
        };
        let status = match result {
            Ok(()) => DiskStatus::Ok,
            Err(error) => {
                tracing::warn!(disk, offset, len, %error, "disk request failed; the guest sees an I/O error");
                self.buffer.clear();
                DiskStatus::IoError
            }
        };
        let _ = self.ring.release();
        while !self.completions.disk_done(disk, tag, status, &self.buffer) {
            if self.stop.load(Ordering::Acquire) {
                return true;
            }
            // The vCPU thread is behind; it takes completions at its next exit.
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::host::vcpu::clock::HostClock;
    use crate::host::vcpu::inputs::inputs;
    use crate::machine::time::VirtualTime;

    /// A primary is stopped with writes in hand, and goes on when another side has written elsewhere in the same place.
    #[test]
    fn a_write_whose_turn_comes_after_the_lease_waits_for_the_next_or_is_never_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * SECTOR).unwrap();
        let config = [DiskConfig { path: file.path().to_owned(), read_only: false }];
        let (_inputs, [completions]) = inputs::<1>(HostClock::continuing(VirtualTime::ZERO), 1 << 20);
        let lease = Arc::new(LeaseEnd::never());
        let disks = Disks::start(&config, completions, Arc::clone(&lease)).unwrap();
        let write = |disks: &Disks, tag: u64, byte: u8| {
            let op = DiskOp::Write { offset: SECTOR, data: &[byte; SECTOR as usize] };
            assert!(disks.issue(&DiskRequest { disk: 0, tag, op }));
        };
        let on_disk = || std::fs::read(file.path()).unwrap()[SECTOR as usize];
        let settle = |disks: &Disks| {
            let until = Instant::now() + Duration::from_secs(10);
            while !disks.are_idle() {
                assert!(Instant::now() < until, "it is done while the lease holds");
                std::thread::sleep(LOOK);
            }
        };

        write(&disks, 1, 1);
        settle(&disks);
        assert_eq!(on_disk(), 1);
        lease.set(0);
        write(&disks, 2, 2);
        std::thread::sleep(20 * LOOK);
        assert_eq!((on_disk(), disks.are_idle()), (1, false), "not without a lease");
        lease.set(u64::MAX);
        settle(&disks);
        assert_eq!(on_disk(), 2);
        lease.set(0);
        write(&disks, 3, 3);
        write(&disks, 4, 4);
        drop(disks);
        assert_eq!(on_disk(), 2, "whoever lost leaves the disk as it is");
    }
}
