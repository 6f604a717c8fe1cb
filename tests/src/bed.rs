//! The test bed: the lab, and the VMs that are started in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tandem_vmm::host::control::Role;
use tandem_vmm::host::shutdown::Shutdown;

use crate::client::Load;
use crate::config::{Files, Guest, Pace, RdmaLog, Spec, run_directory};
use crate::lab::{self, GUEST, Host, Lab, RdmaDevices};
use crate::side::Side;
use crate::standin::{Misdeed, Room};

/// What is started as a side.
#[derive(Clone, Debug)]
pub enum Program {
    /// `tandem`.
    Tandem(PathBuf),
    /// A stand-in that does what a pair does to the outside, without a VM: it proves the lab, the client
    /// and the torture, and can misbehave so that they must notice.
    StandIn(PathBuf, Option<Misdeed>),
}

impl Program {
    /// `tandem`: the one that `TANDEM_BIN` names, or the one built beside this program.
    ///
    /// # Errors
    /// When there is none.
    pub fn tandem() -> anyhow::Result<Self> {
        if let Some(path) = std::env::var_os("TANDEM_BIN") {
            let path = PathBuf::from(path);
            if !path.is_file() {
                bail!("TANDEM_BIN is {}, and there is no such file", path.display());
            }
            return Ok(Self::Tandem(path));
        }
        beside("tandem").map(Self::Tandem)
    }

    /// The stand-in beside this program.
    ///
    /// # Errors
    /// When it is not built.
    pub fn stand_in(misdeed: Option<Misdeed>) -> anyhow::Result<Self> {
        Ok(Self::StandIn(beside("tandem-standin")?, misdeed))
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Tandem(path) | Self::StandIn(path, _) => path,
        }
    }
}

/// A program of this build: beside the running one, or one directory up for tests.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let candidates = this.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("there is no {name} beside {}: build it with `cargo build`", this.display()))
}

/// The core of the clients and of the primary, as if it were one host; and the core of the backup.
pub const CORES: [usize; 2] = [0, 1];

/// The core of a host's side.
#[must_use]
pub const fn core(host: Host) -> usize {
    match host {
        Host::Primary => CORES[0],
        Host::Backup => CORES[1],
    }
}

/// Between two looks at the sides.
const LOOK: Duration = Duration::from_millis(2);

/// Where VMs are started.
#[derive(Debug)]
pub struct Bed {
    /// The network.
    pub lab: Lab,
    /// What is started.
    pub spec: Spec,
    /// Files of all VMs are here, each in a directory of its own.
    directory: PathBuf,
    /// Some of them stay.
    kept: bool,
    keep_last: bool,
    program: Program,
    interrupted: Shutdown,
    started: u32,
    room: Option<Room>,
    rdma: Option<(RdmaLog, RdmaDevices)>,
}

/// The two sides of a pair.
#[derive(Debug)]
pub struct Pair {
    /// The side that starts as primary.
    pub primary: Side,
    /// The side that starts as backup.
    pub backup: Side,
    /// Its files.
    pub files: Files,
}

impl Pair {
    /// Both sides.
    pub fn sides(&mut self) -> [&mut Side; 2] {
        [&mut self.primary, &mut self.backup]
    }

    /// Whether one side protects the other, as in the beginning.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.primary.role() == Some(Role::Primary) && self.backup.role() == Some(Role::Backup)
    }
}

impl Bed {
    /// A bed for a test with the real `tandem` and the embedded guest; or none, after it has said why: this machine
    /// cannot run it.
    ///
    /// # Errors
    /// When it could, but the lab cannot be built.
    #[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
    pub fn to_test(name: &str) -> anyhow::Result<Option<Self>> {
        let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let obstacle = kvm.err().map(|error| format!("/dev/kvm: {error}")).or_else(lab::obstacle);
        let program = match (obstacle, Program::tandem()) {
            (None, Ok(program)) => program,
            (Some(obstacle), _) => {
                println!("skipped: {obstacle}");
                return Ok(None);
            }
            (None, Err(error)) => {
                println!("skipped: {error:#}");
                return Ok(None);
            }
        };
        let spec = Spec { name: name.to_owned(), guest: Guest::Embedded, pace: Pace::BUSY };
        Self::new("test", program, spec, Shutdown::new()?).map(Some)
    }

    /// The program that runs the VMs.
    #[must_use]
    pub fn program(&self) -> &Path {
        self.program.path()
    }

    /// Builds the lab.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn new(what: &str, program: Program, spec: Spec, interrupted: Shutdown) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let directory = run_directory(what)?;
        Ok(Self {
            lab,
            spec,
            directory,
            kept: false,
            keep_last: false,
            program,
            interrupted,
            started: 0,
            room: None,
            rdma: None,
        })
    }

    /// A file of all VMs, beside those that each has for itself.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Leaves the files of the last VM where they are, for somebody to look at. Returns where.
    pub fn keep(&mut self) -> PathBuf {
        (self.kept, self.keep_last) = (true, true);
        self.directory.join(self.started.to_string())
    }

    /// The ends of all that the last VM's processes wrote, guest's console included.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let directory = self.directory.join(self.started.to_string());
        let mut files: Vec<_> = fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        files.sort();
        let mut words = String::new();
        for file in files {
            let wanted = file.extension().is_some_and(|suffix| suffix == "out" || suffix == "err");
            let text = if wanted { fs::read(&file).unwrap_or_default() } else { Vec::new() };
            let text = String::from_utf8_lossy(&text);
            let all: Vec<_> = text.lines().collect();
            if !all.is_empty() {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let tail = all[all.len().saturating_sub(lines)..].join("\n");
                words.push_str(&format!("--- {name}\n{tail}\n"));
            }
        }
        words
    }

    /// The guest's Redis.
    #[must_use]
    pub const fn server(&self) -> SocketAddrV4 {
        SocketAddrV4::new(GUEST, 6379)
    }

    /// From now on the log goes over RDMA: the devices of the cards at both ends of its cable, or soft RoCE on them.
    pub fn over_rdma(&mut self, log: RdmaLog) {
        self.rdma = Some((log, RdmaDevices::new()));
    }

    /// The RDMA devices, if the log goes over them.
    #[must_use]
    pub fn rdma_devices(&self) -> Option<&RdmaDevices> {
        self.rdma.as_ref().map(|(_, devices)| devices)
    }

    /// What the checking client asks for. In software emulation a guest answers some two hundred requests a second:
    /// there it asks for less.
    #[must_use]
    pub fn load(&self, seed: u64) -> Load {
        let pace = &self.spec.pace;
        let load =
            Load { patience: self.patience(5.0), core: Some(CORES[0]), ..Load::new(self.server(), seed) };
        if pace.is_emulated() {
            // A primary that dies has answers on their way for longer there, and nobody takes over before this.
            let stragglers = Duration::from_millis(pace.heartbeat_ms * pace.missed / 2);
            return Load { busy: 4, pace: Duration::from_millis(200), stragglers, ..load };
        }
        load
    }

    /// A wait of so many seconds on hardware.
    #[must_use]
    pub fn patience(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * f64::from(self.spec.pace.patience))
    }

    /// A token that says whether the user wants to stop.
    #[must_use]
    pub const fn interrupted(&self) -> &Shutdown {
        &self.interrupted
    }

    /// Waits, unless the user wants to stop.
    ///
    /// # Errors
    /// When the user does.
    pub fn pause(&self, time: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + time;
        loop {
            if self.interrupted.requested() {
                bail!("interrupted");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Starts the VM alone, on the primary's host, and waits until its Redis answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn alone(&mut self) -> anyhow::Result<Side> {
        let files = self.fresh_files()?;
        let mut side = self.start("run", Host::Primary, &files, &[])?;
        self.wait_for_server(&mut side, self.patience(10.0))?;
        Ok(side)
    }

    /// Starts the VM alone, recorded for so long, and waits until its Redis answers. Also says where the
    /// log will be.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn record(&mut self, time: Duration) -> anyhow::Result<(Side, PathBuf)> {
        let files = self.fresh_files()?;
        let log = files.directory.join("recording");
        let seconds = time.as_secs_f64().to_string();
        let more = ["--log".as_ref(), log.as_os_str(), "--stop-after".as_ref(), seconds.as_ref()];
        let mut side = self.start("record", Host::Primary, &files, &more)?;
        self.wait_for_server(&mut side, self.patience(10.0))?;
        Ok((side, log))
    }

    /// Starts a protected pair with a new arbiter, and waits until its Redis answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn pair(&mut self) -> anyhow::Result<Pair> {
        let files = self.fresh_files()?;
        let backup = self.start("backup", Host::Backup, &files, &[])?;
        let primary = self.start("primary", Host::Primary, &files, &[])?;
        let mut pair = Pair { primary, backup, files };
        let deadline = Instant::now() + self.patience(10.0);
        while !pair.is_whole() {
            // One that waits for the other says nothing yet; one that has ended says why.
            for side in pair.sides() {
                side.must_run()?;
            }
            self.pause(LOOK * self.spec.pace.patience)?;
            if Instant::now() > deadline {
                pair.primary.wait_for_role(&[Role::Primary], Duration::ZERO)?;
                pair.backup.wait_for_role(&[Role::Backup], Duration::ZERO)?;
            }
        }
        if let Err(error) = self.wait_for_server(&mut pair.primary, self.patience(10.0)) {
            let states = pair.sides().map(|side| side.state());
            return Err(error.context(states.join("; ")));
        }
        Ok(pair)
    }

    /// Forgets the files of the last VM started, unless they are kept.
    fn tidy(&mut self) {
        self.room = None;
        if !std::mem::take(&mut self.keep_last) {
            let _ = fs::remove_dir_all(self.directory.join(self.started.to_string()));
        }
    }

    fn fresh_files(&mut self) -> anyhow::Result<Files> {
        if self.interrupted.requested() {
            bail!("interrupted");
        }
        self.lab.restore()?;
        self.tidy();
        self.started += 1;
        let directory = self.directory.join(self.started.to_string());
        fs::create_dir(&directory)?;
        if let Program::StandIn(..) = self.program {
            self.room = Some(Room::new(&self.lab, &directory)?);
        }
        let files = Files::write(&self.spec, &directory)?;
        if let Some((log, devices)) = &self.rdma {
            devices.renew(&self.lab)?;
            let mut config = File::options().append(true).open(&files.config)?;
            config.write_all(log.keys().as_bytes()).context("cannot write the config")?;
        }
        Ok(files)
    }

    fn start(&self, command: &str, host: Host, files: &Files, more: &[&OsStr]) -> anyhow::Result<Side> {
        let mut launch =
            files.launch(self.program.path(), command, &self.lab, host)?.args(more).on_core(core(host));
        if let (Program::StandIn(_, misdeed), Some(room)) = (&self.program, &self.room) {
            launch = room.equip(launch, *misdeed);
        }
        Ok(Side::new(launch.start()?, files.control(host)))
    }

    /// Waits until the guest's Redis answers a PING.
    ///
    /// # Errors
    /// When it does not within `patience`, or the side ends.
    pub fn wait_for_server(&self, side: &mut Side, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        let server = SocketAddr::V4(self.server());
        // Short at first: a guest that is not up yet does not answer the first ARP request.
        let one_try = Duration::from_millis(50) * self.spec.pace.patience;
        while !self.lab.client().enter(|| ping(&server, one_try))? {
            side.must_run()?;
            if self.interrupted.requested() {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("the guest's Redis did not answer in {patience:.1?}");
            }
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Whether a Redis server answers a PING.
pub(crate) fn ping(server: &SocketAddr, patience: Duration) -> bool {
    use std::io::{Read, Write};
    let answer = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 7];
        stream.read_exact(&mut reply)?;
        Ok(reply == *b"+PONG\r\n")
    };
    answer().unwrap_or(false)
}
