//! The config file of a VM.
//!
//! TOML, one file for both sides of a pair; relative paths are relative to the file. `Config` holds
//! plain values in their units with every default filled in. All mistakes of a file are reported
//! together, each with file, line and key.

mod key;
mod mac;
mod problem;
mod schema;
mod section;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tandem_arbiter::VmId;
use xxhash_rust::xxh3::xxh3_128_with_seed;

pub use key::{KEY_LEN, KeyError, read_key};
pub use mac::{MacAddress, MacError};
pub use problem::{ConfigError, Problem};

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

/// Longest config file that is read, in bytes.
const LONGEST_FILE: u64 = MIB;

/// Everything that a config file says, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from, as the caller named it.
    pub file: PathBuf,
    /// `name`: names the VM in arbiter records, log identity and status; 1 to 64 letters, digits,
    /// `.`, `_`, `-`. No default.
    pub name: String,
    /// `[machine]`.
    pub machine: MachineConfig,
    /// `[[net]]`, in order, at most four.
    pub nets: Vec<NetConfig>,
    /// `[[disk]]`, in order, at most four.
    pub disks: Vec<DiskConfig>,
    /// `[serial]`.
    pub serial: SerialConfig,
    /// `[pair]`: only primary and backup need it, see [`Config::pair`].
    pub pair: Option<PairConfig>,
    /// `[control] socket`: where status and failover are asked; none by default.
    pub control_socket: Option<PathBuf>,
}

/// `[machine]`: processor, memory and what is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// `memory_mib`, here in bytes: 16 MiB to 64 GiB, default 64 MiB.
    pub memory: u64,
    /// `kernel`, default `"embedded"`.
    pub kernel: Kernel,
    /// `initrd`: none by default.
    pub initrd: Option<PathBuf>,
    /// `cmdline`: the kernel's command line without what Tandem appends; at most 1,536 bytes, empty by
    /// default.
    pub cmdline: String,
    /// `tick_bound_ms`: the longest time without a point of injection before a forced stop; 1 ms to 1 s,
    /// default 5 ms.
    pub tick_bound: Duration,
    /// `tsc`, default `"hidden"`.
    pub tsc: Tsc,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The Redis-speaking guest that is linked into `tandem`.
    Embedded,
    /// A bzImage or an ELF kernel with a PVH entry.
    Image(PathBuf),
}

/// How the guest's time stamp counter is kept from making the two sides differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tsc {
    /// CPUID says that there is none, and the guest must not use it.
    Hidden,
    /// The kernel module traps it; the guest reads a virtual one. Both hosts need the module.
    Trapped,
}

/// One `[[net]]`: a virtio network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// `tap`: the tap device on the host, 1 to 15 bytes. No default.
    pub tap: String,
    /// `mac`: the card's address, unicast. No default: both hosts must have the same.
    pub mac: MacAddress,
}

/// One `[[disk]]`: a virtio disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// `path`: an image file or a block device. No default.
    pub path: PathBuf,
    /// `read_only`, default false.
    pub read_only: bool,
}

/// `[serial]`: the serial line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialConfig {
    /// `output`, default `"stdout"`.
    pub output: SerialOutput,
    /// `input`, default `"none"`.
    pub input: SerialInput,
}

/// Where the guest's serial output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialOutput {
    /// To standard output.
    Stdout,
    /// Nowhere.
    Nowhere,
    /// To this file.
    File(PathBuf),
}

/// Where the guest's serial input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialInput {
    /// Nothing is ever typed.
    Nothing,
    /// From standard input.
    Stdin,
}

/// `transport`: what carries the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTransport {
    /// TCP over io_uring.
    Tcp,
    /// RDMA, set up by rdma_cm between the addresses of the log's TCP connection. Only in a build with
    /// the feature `rdma`.
    Rdma,
}

/// `completion`: how the threads that receive learn of what came, over TCP and over RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogCompletion {
    /// They sleep until the kernel wakes them.
    Events,
    /// They look for 50 µs, then sleep.
    Adaptive,
    /// They look all the time.
    Busy,
}

/// `ack`: when log counts as safe with the backup, so that the outputs that wait for it may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogAck {
    /// The backup has read and checked it, and says so.
    Read,
    /// The backup's RDMA adapter says that it has it.
    Placed,
}

/// `[pair]`: what two hosts must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairConfig {
    /// `listen`: the backup waits here for the log (TCP) and for heartbeats (UDP, same port). No default.
    pub listen: SocketAddr,
    /// `primary`: the primary's own address for heartbeats (UDP). No default.
    pub primary: SocketAddr,
    /// `key`: the pre-shared key's file, to be read by [`read_key`]. No default.
    pub key: PathBuf,
    /// `encrypt`: whether the log is encrypted, not only authenticated; default false.
    pub encrypt: bool,
    /// `transport`: what carries the log; default TCP.
    pub transport: LogTransport,
    /// `completion`: how a receiving thread learns of what came; default events.
    pub completion: LogCompletion,
    /// `ack`: what an output waits for; default read. Placed only with RDMA and without `encrypt`.
    pub ack: LogAck,
    /// `busy_poll_us`: with TCP, the kernel polls the network card for so long while a receiving thread waits; 0 to
    /// 10,000 µs, default 0: it waits for the card's interrupt.
    pub busy_poll: Duration,
    /// `registered_buffers`: with TCP, the buffer that the log is sent from is registered with the kernel, and locked
    /// into memory; default false.
    pub registered_buffers: bool,
    /// `replay_poll_us`: a backup that has executed all log looks for more for so long before it sleeps, while log
    /// comes as often as that; 0 to 10,000 µs, default 1,000: its core is awake then, and acknowledges sooner.
    pub replay_poll: Duration,
    /// `arbiter`: a file or block device (Disk Paxos) or a directory (link). No default.
    pub arbiter: PathBuf,
    /// `heartbeat_ms`: between two heartbeats; 1 ms to 1 s, default 10 ms.
    pub heartbeat: Duration,
    /// `missed`: so many heartbeats in a row must be missing before the peer counts as gone; 2 to 100,
    /// default 5.
    pub missed: u32,
    /// `log_buffer_mib`, here in bytes: the bounded buffer at each side; 1 MiB to 1 GiB, default 16 MiB.
    pub log_buffer: u64,
    /// `lag_bound_ms`: a backup further behind slows the primary gently; 10 ms to 60 s, default 1 s.
    pub lag_bound: Duration,
}

impl PairConfig {
    /// Silence of this length means that the peer is gone.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.heartbeat * self.missed
    }
}

impl Config {
    /// Reads a config file and looks whether the files it names for the machine (kernel, initrd, disks)
    /// are there. The pair's key and arbiter are looked at when they are used.
    ///
    /// # Errors
    /// All mistakes found, each with line and key.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::read_file(file, &schema::look_at_file)
    }

    /// Reads a config file without looking at the files it names: for a command that does not run the VM,
    /// perhaps on a machine that could not.
    ///
    /// # Errors
    /// All mistakes found, each with line and key.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::read_file(file, &|_, _| Ok(()))
    }

    fn read_file(file: &Path, look: schema::Look<'_>) -> Result<Self, ConfigError> {
        let unreadable = |why: &dyn std::fmt::Display| {
            ConfigError::whole_file(file, "", format!("cannot read the config file: {why}"))
        };
        let length = fs::metadata(file).map_err(|error| unreadable(&error))?.len();
        if length > LONGEST_FILE {
            return Err(unreadable(&format_args!("{length} bytes is too long for one")));
        }
        let text = fs::read_to_string(file).map_err(|error| unreadable(&error))?;
        let home = std::path::absolute(file).map_err(|error| unreadable(&error))?;
        let home = home.parent().unwrap_or(Path::new("/"));
        let (config, problems) = schema::read(&text, file, home, look);
        settle(file, config, problems)
    }

    /// Reads a config from its text, without looking at any file. Relative paths become relative to
    /// `file`'s directory.
    ///
    /// # Errors
    /// All mistakes found, each with line and key.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let home = file.parent().unwrap_or(Path::new(""));
        let (config, problems) = schema::read(text, file, home, &|_, _| Ok(()));
        settle(file, config, problems)
    }

    /// The `[pair]` section, for a command that needs one.
    ///
    /// # Errors
    /// When the file has none.
    pub fn pair(&self) -> Result<&PairConfig, ConfigError> {
        self.pair.as_ref().ok_or_else(|| {
            let message = "missing: a primary and a backup need it, with listen, primary, key and arbiter";
            ConfigError::whole_file(&self.file, "[pair]", message)
        })
    }

    /// The VM's identity in arbiter records.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        vm_id(&self.name)
    }

    /// Replaces the taps of the first cards, for a side that names them differently (`--tap NAME`).
    ///
    /// # Errors
    /// More names than cards, or a name that no device can have.
    pub fn override_taps(&mut self, taps: &[String]) -> Result<(), ConfigError> {
        if taps.len() > self.nets.len() {
            let message =
                format!("{} cards in the file, but --tap given {} times", self.nets.len(), taps.len());
            return Err(ConfigError::whole_file(&self.file, "[[net]]", message));
        }
        for (net, tap) in self.nets.iter_mut().zip(taps) {
            schema::check_tap_name(tap)
                .map_err(|message| ConfigError::whole_file(&self.file, "--tap", message))?;
            net.tap.clone_from(tap);
        }
        Ok(())
    }
}

/// The identity in arbiter records of the VM called `name`: a hash of it, the same on every host.
#[must_use]
pub fn vm_id(name: &str) -> VmId {
    // Never to change: arbiters on disks carry it.
    VmId(xxh3_128_with_seed(name.as_bytes(), 0x0054_616e_6465_6d00).to_be_bytes())
}

/// Checks a name by the rule of the key `name`.
///
/// # Errors
/// A sentence: what is wrong with it.
pub fn check_vm_name(name: &str) -> Result<(), String> {
    schema::check_vm_name(name)
}

fn settle(file: &Path, config: Option<Config>, problems: Vec<Problem>) -> Result<Config, ConfigError> {
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError { file: file.to_owned(), problems }),
    }
}

#[cfg(test)]
mod tests;
