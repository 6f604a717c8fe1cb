//! What a config boots: images read, sizes asked, facts of the moment drawn.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::config::{Config, Kernel, Tsc};
use super::embedded;
use super::io::disk::{self, DiskError};
use super::paging;
use crate::machine::board::DOORBELL_ADDRESS;
use crate::machine::boot::SEED_LEN;
use crate::machine::vm::{DiskConfig, Machine, MachineConfig, MachineError, NicConfig};

/// First bytes of encoded [`BootFacts`].
const FACTS_TAG: &[u8; 8] = b"TDMBOOT1";

/// A guest that cannot be read.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A file cannot be read.
    #[error("cannot read the guest's {what} {}", path.display())]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The embedded guest would stop at once.
    #[error(
        "the embedded guest needs an address: add ip=ADDRESS/PREFIX to [machine] cmdline, such as \
         cmdline = \"ip=10.99.1.2/24\""
    )]
    NoAddress,
    /// As above.
    #[error("the embedded guest needs a network card: add [[net]] with tap and mac")]
    NoNetwork,
    /// The host has no randomness.
    #[error("cannot draw the guest's boot seed from the host")]
    Seed(#[source] io::Error),
}

/// The facts of a boot that are not in the config: drawn once, logged, the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootFacts {
    /// Seed of all the guest's randomness.
    pub seed: [u8; SEED_LEN],
    /// Unix seconds at power-on.
    pub wall_clock: u64,
}

impl BootFacts {
    /// Draws them from the host.
    ///
    /// # Errors
    /// When the host has no randomness.
    pub fn draw() -> Result<Self, GuestError> {
        let mut seed = [0; SEED_LEN];
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), SEED_LEN, 0) };
        if got != SEED_LEN as isize {
            return Err(GuestError::Seed(io::Error::last_os_error()));
        }
        let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Self { seed, wall_clock })
    }
}

/// Bytes of encoded [`BootFacts`].
const FACTS_LEN: usize = 16 + SEED_LEN;

impl BootFacts {
    /// As bytes, for the log's first frame: a tag, the wall clock, the seed.
    #[must_use]
    pub fn encode(&self) -> [u8; FACTS_LEN] {
        let mut bytes = [0; FACTS_LEN];
        bytes[..8].copy_from_slice(FACTS_TAG);
        bytes[8..16].copy_from_slice(&self.wall_clock.to_le_bytes());
        bytes[16..].copy_from_slice(&self.seed);
        bytes
    }

    /// Reads what [`BootFacts::encode`] made; `None` if it is something else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FACTS_LEN] = bytes.try_into().ok()?;
        let (tag, rest) = bytes.split_first_chunk::<8>()?;
        let (wall_clock, seed) = rest.split_first_chunk::<8>()?;
        let facts = Self { seed: seed.try_into().ok()?, wall_clock: u64::from_le_bytes(*wall_clock) };
        (tag == FACTS_TAG).then_some(facts)
    }
}

/// A guest in the host's memory, ready to boot.
#[derive(Clone, Debug)]
pub struct Guest {
    ram: u64,
    kernel: Cow<'static, [u8]>,
    initrd: Option<Vec<u8>>,
    command_line: String,
    embedded: bool,
    trapped_tsc: bool,
    nics: Vec<NicConfig>,
    disks: Vec<DiskConfig>,
}

/// One part of a guest's identity: two sides must agree on all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPart {
    /// Which part.
    pub name: &'static str,
    /// Its digest.
    pub digest: u64,
    /// For people.
    pub text: String,
}

impl Guest {
    /// Reads what the config names.
    ///
    /// # Errors
    /// When a file or disk cannot be read.
    pub fn load(config: &Config) -> Result<Self, GuestError> {
        Self::suits(config)?;
        let embedded = config.machine.kernel == Kernel::Embedded;
        let kernel = match &config.machine.kernel {
            Kernel::Embedded => Cow::Borrowed(embedded::IMAGE),
            Kernel::Image(path) => Cow::Owned(read("kernel", path)?),
        };
        let initrd = config.machine.initrd.as_deref().map(|path| read("initrd", path)).transpose()?;
        let mut command_line = config.machine.cmdline.clone();
        if embedded {
            command_line =
                format!("{command_line} tandem.doorbell={DOORBELL_ADDRESS:#x} tandem.doorbell_frames=1")
                    .trim()
                    .to_owned();
        }
        let disks = config
            .disks
            .iter()
            .map(|d| Ok(DiskConfig { sectors: disk::sectors(&d.path)?, read_only: d.read_only }))
            .collect::<Result<_, DiskError>>()?;
        let nics = config.nets.iter().map(|net| NicConfig { mac: net.mac.bytes() }).collect();
        let trapped_tsc = config.machine.tsc == Tsc::Trapped;
        Ok(Self {
            ram: config.machine.memory,
            kernel,
            initrd,
            command_line,
            embedded,
            trapped_tsc,
            nics,
            disks,
        })
    }

    /// Whether the machine has what its guest cannot do without.
    ///
    /// # Errors
    /// The embedded guest needs an address and a network card.
    pub fn suits(config: &Config) -> Result<(), GuestError> {
        let machine = &config.machine;
        if machine.kernel != Kernel::Embedded {
            return Ok(());
        }
        if !machine.cmdline.split_whitespace().any(|word| word.starts_with("ip=")) {
            return Err(GuestError::NoAddress);
        }
        if config.nets.is_empty() { Err(GuestError::NoNetwork) } else { Ok(()) }
    }

    /// The machine's configuration for a boot.
    #[must_use]
    pub fn machine(&self, facts: &BootFacts, dirty_log: bool) -> MachineConfig<'_> {
        MachineConfig {
            ram: self.ram,
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
            command_line: &self.command_line,
            nics: &self.nics,
            disks: &self.disks,
            seed: facts.seed,
            wall_clock: facts.wall_clock,
            dirty_log,
            shadow_paging: paging::shadow(),
            doorbell: self.embedded,
            trapped_tsc: self.trapped_tsc,
        }
    }

    /// What CPUID will show the guest on this host.
    ///
    /// # Errors
    /// When KVM does not say what it supports.
    pub fn cpuid(&self, system: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
        Machine::guest_cpuid(system, self.trapped_tsc)
    }

    /// What two sides must agree on, part by part. `cpuid` is what the guest will see.
    #[must_use]
    pub fn identity(&self, cpuid: &[u8]) -> Vec<IdentityPart> {
        let file = |bytes: &[u8]| format!("{} bytes, {:016x}", bytes.len(), xxh3_64(bytes));
        let devices = format!("{:?} {:?}", self.nics, self.disks);
        let part = |name, digest, text| IdentityPart { name, digest, text };
        vec![
            part("kernel", xxh3_64(&self.kernel), file(&self.kernel)),
            part(
                "initrd",
                self.initrd.as_deref().map_or(0, xxh3_64),
                self.initrd.as_deref().map_or_else(|| "none".to_owned(), file),
            ),
            part("command line", xxh3_64(self.command_line.as_bytes()), self.command_line.clone()),
            part("memory", self.ram, format!("{} MiB", self.ram >> 20)),
            part(
                "devices",
                xxh3_64(devices.as_bytes()),
                format!("{} network, {} disk", self.nics.len(), self.disks.len()),
            ),
            part(
                "TSC",
                u64::from(self.trapped_tsc),
                if self.trapped_tsc { "trapped" } else { "hidden" }.to_owned(),
            ),
            part("CPUID", xxh3_64(cpuid), format!("{:016x}", xxh3_64(cpuid))),
        ]
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, GuestError> {
    fs::read(path).map_err(|source| GuestError::Read { what, path: path.to_owned(), source })
}
