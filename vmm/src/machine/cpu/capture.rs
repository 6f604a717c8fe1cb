//! The kernel module's side of a vCPU: `/dev/tandem`, which serves the instructions that KVM alone cannot trap.
//!
//! In record mode the module answers RDTSC and its kin from the virtual TSC and puts each value into a ring; in
//! replay mode it takes the values from one. What it cannot do itself pauses the vCPU in front of the
//! instruction, and `Vcpu::enter` returns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use tandem_kmod_brain::abi::{self, Clock, Control, Histogram, Info, Pause, Register};
use tandem_kmod_brain::histogram::Kind;
use tandem_kmod_brain::ring::{Consumer, Entry, Producer, RingError, Slot};
use tandem_kmod_brain::vcpu::Area;
use thiserror::Error;

/// The module's device.
pub const DEVICE: &str = "/dev/tandem";

/// Entries of each ring.
pub const RING_ENTRIES: u32 = 4096;

/// The virtual TSC's frequency, in kHz: it counts nanoseconds, on every host.
pub const GUEST_KHZ: u32 = 1_000_000;

/// Low bits of the virtual TSC that read zero: 16 ns, of which a trapped read takes many.
pub const QUANTUM: u32 = 4;

/// Why instructions cannot be captured.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The module is not there.
    #[error("cannot open {DEVICE}: the kernel module is not loaded, or access is denied")]
    Open(#[source] io::Error),
    /// The module is of another version.
    #[error("{DEVICE} speaks interface {found}, this program {}: build both from one source", abi::VERSION)]
    Version {
        /// The module's.
        found: u32,
    },
    /// The module refused.
    #[error("{DEVICE} refused to {0}")]
    Refused(&'static str, #[source] io::Error),
    /// A ring's index or entry cannot be.
    #[error("the memory shared with {DEVICE} is damaged")]
    Damaged,
}

/// Whether captured values are made or replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureMode {
    /// The guest executes its instructions natively.
    Off,
    /// Values come from the virtual TSC.
    Record,
    /// Values come from the log.
    Replay,
}

/// A vCPU registered with the module.
#[derive(Debug)]
pub struct Capture {
    device: File,
    memory: NonNull<u8>,
    len: usize,
    /// Of each ring.
    entries: usize,
    mode: CaptureMode,
    record: Consumer,
    replay: Producer,
}

// SAFETY: the mapping is owned, and all that lies in it is atomic.
unsafe impl Send for Capture {}

fn open(path: &Path) -> Result<File, CaptureError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
        .map_err(CaptureError::Open)
}

fn ioctl<T>(device: &File, command: u32, argument: *mut T, doing: &'static str) -> Result<(), CaptureError> {
    // SAFETY: the number says how many bytes are read and written, which is the size of the T that the
    // caller passes.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::c_ulong::from(command), argument) };
    if result < 0 { Err(CaptureError::Refused(doing, io::Error::last_os_error())) } else { Ok(()) }
}

/// What the module on this host can do.
///
/// # Errors
/// When it is not there, or of another version.
pub fn probe() -> Result<Info, CaptureError> {
    info(&open(Path::new(DEVICE))?)
}

fn info(device: &File) -> Result<Info, CaptureError> {
    let mut info = Info::default();
    ioctl(device, abi::INFO, &raw mut info, "say what it can do")?;
    if info.version != abi::VERSION {
        return Err(CaptureError::Version { found: info.version });
    }
    Ok(info)
}

impl Capture {
    /// Registers the vCPU of a KVM descriptor, of which `traps` (by `Trap::bit`) are to be captured. The mode is
    /// off.
    ///
    /// # Errors
    /// When the module is not there or refuses.
    pub fn register(vcpu: RawFd, traps: u32) -> Result<Self, CaptureError> {
        Self::with_rings(vcpu, traps, RING_ENTRIES)
    }

    /// The same with rings of another size.
    ///
    /// # Errors
    /// When the module is not there or refuses.
    pub fn with_rings(vcpu: RawFd, traps: u32, entries: u32) -> Result<Self, CaptureError> {
        let device = open(Path::new(DEVICE))?;
        info(&device)?;
        let mut ask = Register {
            version: abi::VERSION,
            size: size_of::<Register>() as u32,
            vcpu_fd: vcpu,
            traps,
            record_entries: entries,
            replay_entries: entries,
            area: 0,
        };
        ioctl(&device, abi::REGISTER, &raw mut ask, "register the vCPU")?;
        let len = ask.area as usize;
        if Some(len) != abi::area_len(entries, entries) {
            return Err(CaptureError::Damaged);
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of the device, of the length that it named.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, device.as_raw_fd(), 0)
        };
        let refused = || CaptureError::Refused("share its memory", io::Error::last_os_error());
        let memory = if memory == libc::MAP_FAILED { None } else { NonNull::new(memory.cast()) }
            .ok_or_else(refused)?;
        let entries = entries as usize;
        let (mode, record, replay) = (CaptureMode::Off, Consumer::new(), Producer::new());
        Ok(Self { device, memory, len, entries, mode, record, replay })
    }

    fn area(&self) -> Area<'_> {
        let entries = self.entries;
        // SAFETY: the mapping is as long as the module asked for a page and two rings of so many entries; all of
        // it is atomic, and lives as long as `self`.
        unsafe {
            let slots = self.memory.add(abi::PAGE).cast::<Slot>();
            Area {
                control: self.memory.cast::<Control>().as_ref(),
                record: std::slice::from_raw_parts(slots.as_ptr(), entries),
                replay: std::slice::from_raw_parts(slots.add(entries).as_ptr(), entries),
            }
        }
    }

    fn control(&self) -> &Control {
        self.area().control
    }

    /// Sets the virtual TSC to `value` now.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn set_clock(&self, value: u64) -> Result<(), CaptureError> {
        let mut clock = Clock { guest_khz: GUEST_KHZ, quantum: QUANTUM, value };
        ioctl(&self.device, abi::SET_CLOCK, &raw mut clock, "set the virtual TSC")
    }

    /// Sets the mode, and empties both rings. From replay to record, the virtual TSC goes on from the last value
    /// replayed.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn set_mode(&mut self, mode: CaptureMode) -> Result<(), CaptureError> {
        let mut number = match mode {
            CaptureMode::Off => abi::MODE_OFF,
            CaptureMode::Record => abi::MODE_RECORD,
            CaptureMode::Replay => abi::MODE_REPLAY,
        };
        ioctl(&self.device, abi::SET_MODE, &raw mut number, "change its mode")?;
        self.mode = mode;
        self.record = Consumer::new();
        self.replay = Producer::new();
        Ok(())
    }

    /// Empties both rings, forgets a pause that has not come yet, and lifts the limit.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn empty_rings(&mut self) -> Result<(), CaptureError> {
        self.set_mode(self.mode)
    }

    /// Takes the oldest recorded value.
    ///
    /// # Errors
    /// When the shared memory is damaged.
    pub fn recorded(&mut self) -> Result<Option<Entry>, CaptureError> {
        let mut consumer = self.record;
        let ring = self.area().record_ring();
        let entry = match consumer.front(&ring) {
            Ok(entry) => entry,
            Err(RingError::Wait) => return Ok(None),
            Err(RingError::Corrupt) => return Err(CaptureError::Damaged),
        };
        consumer.release(&ring);
        self.record = consumer;
        Ok(Some(entry))
    }

    /// Values for replay that fit now.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.replay.room(&self.area().replay_ring())
    }

    /// Gives the module a value to replay. False: there is no room.
    ///
    /// # Errors
    /// When the shared memory is damaged.
    pub fn feed(&mut self, entry: &Entry) -> Result<bool, CaptureError> {
        let mut producer = self.replay;
        let fed = match producer.push(&self.area().replay_ring(), entry) {
            Ok(()) => true,
            Err(RingError::Wait) => false,
            Err(RingError::Corrupt) => return Err(CaptureError::Damaged),
        };
        self.replay = producer;
        Ok(fed)
    }

    /// Captured instructions served since the registration.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.control().module.served.load(Ordering::Acquire)
    }

    /// The virtual TSC that the guest has read last.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.control().module.tsc.load(Ordering::Relaxed)
    }

    /// Why the vCPU was paused last, if it has not entered the guest since.
    #[must_use]
    pub fn pause(&self) -> Option<Pause> {
        Pause::of(self.control().module.pause.load(Ordering::Acquire))
    }

    /// Digest of all captured instructions.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.control().vmm.digest.load(Ordering::Relaxed)
    }

    /// Sets the digest. The vCPU does not run.
    pub fn set_digest(&self, digest: u64) {
        self.control().vmm.digest.store(digest, Ordering::Relaxed);
    }

    /// Sets what RDTSCP puts into ECX. The vCPU does not run.
    pub fn set_tsc_aux(&self, aux: u64) {
        self.control().vmm.tsc_aux.store(aux, Ordering::Relaxed);
    }

    /// Sets how many captured instructions may be served in all, by the count of [`Capture::served`]: in front of
    /// the next one the vCPU is paused. A change of mode sets the largest number.
    pub fn set_limit(&self, served: u64) {
        self.control().vmm.limit.store(served, Ordering::Relaxed);
    }

    /// Switches exit histograms on, from zero, or off.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn set_tracing(&self, on: bool) -> Result<(), CaptureError> {
        let mut on = u32::from(on);
        ioctl(&self.device, abi::SET_TRACING, &raw mut on, "switch histograms")
    }

    /// All exit histograms that are not empty.
    ///
    /// # Errors
    /// When the module refuses.
    pub fn histograms(&self) -> Result<Vec<Kind>, CaptureError> {
        let mut kinds = Vec::new();
        loop {
            let mut ask = Histogram { index: kinds.len() as u32, ..Histogram::default() };
            match ioctl(&self.device, abi::HISTOGRAM, &raw mut ask, "show a histogram") {
                Ok(()) if ask.kind.count != 0 => kinds.push(ask.kind),
                Err(CaptureError::Refused(_, error)) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(CaptureError::Refused("show a histogram", error));
                }
                _ => return Ok(kinds),
            }
        }
    }

    /// The module's descriptor, for what is not here.
    #[must_use]
    pub fn device(&self) -> &File {
        &self.device
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // SAFETY: mapped in `register`, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.len) };
    }
}
