//! The files of one VM: config, key, arbiter.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tandem_arbiter::{Arbiter, InitOptions};
use tandem_vmm::host::config::vm_id;

use crate::lab::{BACKUP, Host, Lab, PRIMARY, TAP, guest_mac};
use crate::process::Launch;
use crate::random::fresh_seed;

/// The guest's prefix, as it is given on its command line.
const GUEST_NETWORK: &str = "10.77.0.2/24";
/// Log and heartbeats.
const PORT: u16 = 7700;

/// What runs in the VM: a Redis server either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// The one that is linked into `tandem`.
    Embedded,
    /// Linux with redis-server.
    Linux {
        /// Its kernel, a bzImage.
        kernel: PathBuf,
        /// Its initramfs.
        initrd: PathBuf,
        /// Its command line, without the address.
        cmdline: String,
        /// Whether it has a TSC, which the kernel module serves; it then watches its own clocks.
        trapped_tsc: bool,
        /// A disk with an ext4, on which redis-server keeps its data.
        data: Option<PathBuf>,
    },
}

impl Guest {
    /// Whether it has a TSC, and so watches its clocks from within.
    #[must_use]
    pub const fn watches_its_clocks(&self) -> bool {
        matches!(self, Self::Linux { trapped_tsc: true, .. })
    }
}

/// How fast things happen: hardware, or software emulation of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From one heartbeat to the next, in milliseconds.
    pub heartbeat_ms: u64,
    /// Missed ones until the peer counts as gone.
    pub missed: u64,
    /// Waits for processes and guests are so many times longer than on hardware.
    pub patience: u32,
    /// The longest that the guest computes before it is stopped for an input, in milliseconds.
    pub tick_bound_ms: u64,
}

impl Pace {
    /// A machine's own KVM: the defaults.
    pub const NATIVE: Self = Self { heartbeat_ms: 10, missed: 5, patience: 1, tick_bound_ms: 5 };
    /// A machine that does other things at the same time, such as running tests.
    pub const BUSY: Self = Self { heartbeat_ms: 20, missed: 10, patience: 3, tick_bound_ms: 5 };
    /// KVM in QEMU's software emulation.
    pub const EMULATED: Self = Self { heartbeat_ms: 100, missed: 10, patience: 20, tick_bound_ms: 50 };

    /// Whether its times say nothing about hardware.
    #[must_use]
    pub const fn is_emulated(&self) -> bool {
        self.patience >= Self::EMULATED.patience
    }
}

/// A VM and what it runs on.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// What runs in it.
    pub guest: Guest,
    /// How fast.
    pub pace: Pace,
}

/// How the log goes over RDMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaLog {
    /// `ack`: what an output waits for, "read" or "placed".
    pub ack: String,
    /// `completion`: "events", "adaptive" or "busy".
    pub completion: String,
}

impl RdmaLog {
    /// Lines for the end of a config, which is its section `[pair]`.
    #[must_use]
    pub fn keys(&self) -> String {
        format!("transport = \"rdma\"\nack = {:?}\ncompletion = {:?}\n", self.ack, self.completion)
    }
}

/// The written files.
#[derive(Clone, Debug)]
pub struct Files {
    /// Where all of them are.
    pub directory: PathBuf,
    /// The config.
    pub config: PathBuf,
    /// The arbiter's disk.
    pub arbiter: PathBuf,
    /// The control socket of the side that starts as primary, or runs alone.
    pub primary_control: PathBuf,
    /// The control socket of the side that starts as backup.
    pub backup_control: PathBuf,
}

impl Files {
    /// Writes everything into a directory, with a new key and a new arbiter.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(spec: &Spec, directory: &Path) -> anyhow::Result<Self> {
        Self::provide(directory, &spec.name, &config_text(spec), &new_key()?)
    }

    /// Writes a config's text and a key, and makes the arbiter of the VM `name`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn provide(directory: &Path, name: &str, config: &str, key: &str) -> anyhow::Result<Self> {
        let files = Self {
            directory: directory.to_owned(),
            config: directory.join("vm.toml"),
            arbiter: directory.join("arbiter.img"),
            primary_control: directory.join("p.sock"),
            backup_control: directory.join("b.sock"),
        };
        fs::write(&files.config, config).context("cannot write the config")?;
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(directory.join("pair.key"))?;
        writeln!(file, "{key}")?;
        let options = InitOptions { overwrite: true, ..InitOptions::default() };
        Arbiter::init(&files.arbiter, vm_id(name), &options).context("cannot make the arbiter")?;
        Ok(files)
    }

    /// The control socket of the side on this host.
    #[must_use]
    pub fn control(&self, host: Host) -> &Path {
        match host {
            Host::Primary => &self.primary_control,
            Host::Backup => &self.backup_control,
        }
    }

    /// `tandem` with this command, for a side on a host of the lab.
    ///
    /// # Errors
    /// When what it prints cannot be kept.
    pub fn launch(&self, tandem: &Path, command: &str, lab: &Lab, host: Host) -> anyhow::Result<Launch> {
        Launch::new(command, tandem)
            .args(["--log-format", "json", command])
            .args([self.config.as_os_str(), "--control".as_ref(), self.control(host).as_os_str()])
            .inside(lab.host(host))
            .output(&self.directory)
    }
}

/// The text of a config.
#[must_use]
pub fn config_text(spec: &Spec) -> String {
    let machine = match &spec.guest {
        Guest::Embedded => {
            format!("memory_mib = 64\nkernel = \"embedded\"\ncmdline = \"ip={GUEST_NETWORK}\"\n")
        }
        Guest::Linux { kernel, initrd, cmdline, trapped_tsc, data } => format!(
            "memory_mib = 256\nkernel = {:?}\ninitrd = {:?}\ncmdline = {:?}\ntsc = {:?}\n",
            kernel.display().to_string(),
            initrd.display().to_string(),
            format!(
                "{cmdline} tandem.ip={GUEST_NETWORK}{}{}",
                if *trapped_tsc { " tandem.clocks" } else { "" },
                if data.is_some() { " tandem.data" } else { "" },
            )
            .trim(),
            if *trapped_tsc { "trapped" } else { "hidden" },
        ),
    };
    let disk = match &spec.guest {
        Guest::Linux { data: Some(data), .. } => {
            format!("[[disk]]\npath = {:?}\n\n", data.display().to_string())
        }
        _ => String::new(),
    };
    format!(
        "name = {:?}\n\n[machine]\n{machine}tick_bound_ms = {}\n\n{}{disk}[serial]\noutput = \"stdout\"\n\n{}",
        spec.name,
        spec.pace.tick_bound_ms,
        net_section(),
        pair_section(spec.pace),
    )
}

/// The guest's card, on the lab's tap.
#[must_use]
pub fn net_section() -> String {
    format!("[[net]]\ntap = {TAP:?}\nmac = {:?}\n\n", guest_mac())
}

/// The pair on the lab's two hosts, its key and arbiter beside the config.
#[must_use]
pub fn pair_section(pace: Pace) -> String {
    let Pace { heartbeat_ms, missed, .. } = pace;
    format!(
        "[pair]\nlisten = \"{BACKUP}:{PORT}\"\nprimary = \"{PRIMARY}:{PORT}\"\nkey = \"pair.key\"\n\
         arbiter = \"arbiter.img\"\nheartbeat_ms = {heartbeat_ms}\nmissed = {missed}\n"
    )
}

/// A pair's key: 32 random bytes in hex.
///
/// # Errors
/// Without a source of randomness.
pub fn new_key() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0u8; 32];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("no randomness")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A directory of this run's own, with a short path: control sockets have at most 107 bytes.
///
/// # Errors
/// When it cannot be made.
pub fn run_directory(what: &str) -> anyhow::Result<PathBuf> {
    let parent = std::env::temp_dir();
    let parent = if parent.as_os_str().len() > 40 { PathBuf::from("/tmp") } else { parent };
    let path = parent.join(format!("tandem-{what}-{}-{:08x}", std::process::id(), fresh_seed() as u32));
    fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::GUEST_MAC;
    use tandem_vmm::host::config::Config;

    #[test]
    fn the_config_is_one_and_the_key_and_arbiter_fit() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("bzImage");
        fs::write(&kernel, "").unwrap();
        let data = dir.path().join("data.ext4");
        fs::write(&data, [0; 512]).unwrap();
        let linux = Guest::Linux {
            kernel: kernel.clone(),
            initrd: kernel,
            cmdline: "console=ttyS0".to_owned(),
            trapped_tsc: true,
            data: Some(data),
        };
        for guest in [Guest::Embedded, linux] {
            let spec = Spec { name: "lab".to_owned(), guest, pace: Pace::EMULATED };
            let files = Files::write(&spec, dir.path()).unwrap();
            let config = Config::load(&files.config).unwrap();
            let pair = config.pair().unwrap();
            assert_eq!(pair.arbiter, files.arbiter);
            assert_eq!(config.nets[0].mac.bytes(), GUEST_MAC);
            assert_eq!(Arbiter::open(&files.arbiter).unwrap().vm(), vm_id("lab"));
        }
    }
}
