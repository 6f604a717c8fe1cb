//! Where VMs are started and loaded: the lab, this machine, the backup's host, and the time that is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tandem_tests::bed::CORES;
use tandem_tests::config::{Files, Pace, new_key};
use tandem_tests::lab::{GUEST, Host, Lab};
use tandem_tests::process::{Launch, Process};
use tandem_tests::side::Side;
use tandem_vmm::host::control::Role;
use tandem_vmm::host::shutdown::Shutdown;

use super::config::{Orders, config, qemu, qemu_cmdline, without_clocks};
use super::console::{Lines, Mark, mark, rounds};
use super::emulated::TimeLeft;
use super::failover::go_live;
use super::load;
use super::machine::{Machine, Shared, Sources, look};
use super::size::Size;
use super::usage::Look;
use crate::report::{Event, Row, Usage};

/// Between two looks at a console: the emulated CPU that looks is the guest's, too.
const LOOK: Duration = Duration::from_millis(15);

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Tandem, unprotected.
    Alone,
    /// Tandem, a protected pair.
    Pair,
    /// QEMU with the same KVM.
    Qemu,
    /// Tandem, unprotected, with a guest that has the clock of QEMU's: reading it makes no exits.
    SameClock,
}

impl Kind {
    /// In words.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Alone => "unprotected",
            Self::Pair => "protected",
            Self::Qemu => "QEMU",
            Self::SameClock => "unprotected (QEMU's clock)",
        }
    }
}

/// One turn of a row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Of all rounds of batch work that count, or the one that the clients saw; in the row's unit.
    pub(crate) rates: Vec<f64>,
    /// What it cost.
    pub(crate) usage: Usage,
    /// Of what batch work computed.
    pub(crate) hash: Option<String>,
}

/// The stage.
#[derive(Debug)]
pub(crate) struct Stage {
    backup: Option<Side>,
    machine: Machine,
    clients: Clients,
    /// How fast things are.
    pub(crate) pace: Pace,
    /// The guest's command line without what it is to do.
    cmdline: String,
    interrupted: Shutdown,
    time: TimeLeft,
    lab: Lab,
}

/// A running VM.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Runs,
    directory: PathBuf,
    console: PathBuf,
    read: u64,
    lines: Lines,
    told: Vec<String>,
}

#[derive(Debug)]
enum Runs {
    Tandem(Side),
    Qemu(Process),
}

impl Stage {
    /// Everything but a VM.
    ///
    /// # Errors
    /// Without root, or when files are missing.
    pub(crate) fn new(sources: Sources, cmdline: String, pace: Pace, time: TimeLeft) -> Result<Self> {
        let interrupted = Shutdown::on_signals()?;
        let lab = Lab::new()?;
        let machine = Machine::new(sources)?;
        let clients = Clients::new(&machine)?;
        Ok(Self { backup: None, machine, clients, pace, cmdline, interrupted, time, lab })
    }

    /// The time that is left.
    pub(crate) fn left(&self) -> Duration {
        self.time.left()
    }

    fn go_on(&self) -> Result<()> {
        ensure!(!self.interrupted.requested(), "interrupted");
        ensure!(!self.left().is_zero(), "the time for this run was up");
        Ok(())
    }

    /// Starts a VM.
    ///
    /// # Errors
    /// When it does not start, or a pair does not find together.
    pub(crate) fn boot(&mut self, kind: Kind, orders: &Orders) -> Result<Vm> {
        self.go_on()?;
        self.lab.restore()?;
        let cmdline = match kind {
            Kind::SameClock => without_clocks(&self.cmdline),
            _ => self.cmdline.clone(),
        };
        let shared = Shared {
            config: config(&self.machine.root(), &orders.cmdline(&cmdline), self.pace),
            key: new_key()?,
        };
        let files = self.machine.fresh(&shared)?;
        let (process, console) = match kind {
            Kind::Alone | Kind::SameClock => {
                (Runs::Tandem(self.machine.start("run", &self.lab, Host::Primary, &files)?), "run.out")
            }
            Kind::Pair => (Runs::Tandem(self.pair(&files)?), "primary.out"),
            Kind::Qemu => (Runs::Qemu(self.qemu(&files.directory, orders)?), "qemu.out"),
        };
        let directory = files.directory;
        let console = directory.join(console);
        let (lines, told) = (Lines::default(), Vec::new());
        Ok(Vm { process, directory, console, read: 0, lines, told })
    }

    fn pair(&mut self, files: &Files) -> Result<Side> {
        self.backup = Some(self.machine.start("backup", &self.lab, Host::Backup, files)?);
        let mut primary = self.machine.start("primary", &self.lab, Host::Primary, files)?;
        primary.wait_for_role(&[Role::Primary], Duration::from_secs(3) * self.pace.patience)?;
        Ok(primary)
    }

    fn qemu(&self, directory: &Path, orders: &Orders) -> Result<Process> {
        let cmdline = orders.cmdline(&qemu_cmdline(&self.cmdline));
        let args = qemu(&self.machine.root(), directory, &cmdline);
        Launch::new("qemu", Path::new("qemu-system-x86_64"))
            .args(args)
            .inside(self.lab.host(Host::Primary))
            .on_core(CORES[0])
            .output(directory)?
            .start()
    }

    /// Ends a VM, and its backup.
    pub(crate) fn end(&mut self, vm: Vm) {
        drop(vm);
        self.backup = None;
    }

    fn looks(&mut self, vm: &Vm) -> Result<Vec<Look>> {
        let Runs::Tandem(side) = &vm.process else { return Ok(Vec::new()) };
        let backup = self.backup.iter().map(|backup| (backup, Host::Backup));
        [(side, Host::Primary)].into_iter().chain(backup).map(|(side, host)| look(side, host)).collect()
    }

    /// Waits for the batch rows, one after the other, in the guest's order.
    ///
    /// # Errors
    /// When the guest cannot go on, or the time is up.
    pub(crate) fn batch(&mut self, vm: &mut Vm, row: Row) -> Result<Measured> {
        let wait = |this: &Self, vm: &mut Vm| this.next(vm);
        loop {
            if let Mark::Begin(work) = wait(self, vm)?
                && work == row.name()
            {
                break;
            }
        }
        let began = Instant::now();
        let mut before = self.looks(vm)?;
        let (mut ends, mut counted) = (Vec::new(), began);
        loop {
            match wait(self, vm)? {
                Mark::Round(work) if work == row.name() => {
                    ends.push(began.elapsed());
                    if row == Row::Jvm && ends.len() == 1 {
                        // What Java does until its first round is done is no transaction.
                        (before, counted) = (self.looks(vm)?, Instant::now());
                    }
                }
                Mark::End(work, hash) if work == row.name() => {
                    let seconds = counted.elapsed().as_secs_f64();
                    let usage = Usage::between(&before, &self.looks(vm)?, seconds);
                    let took = rounds(Duration::ZERO, &ends, row == Row::Jvm);
                    ensure!(!took.is_empty(), "{} did no round that counts", row.name());
                    // Rounds differ: a JVM becomes quicker. All of them together are one figure.
                    let rate = took.len() as f64 / took.iter().sum::<f64>();
                    return Ok(Measured { rates: vec![rate], usage, hash: Some(hash) });
                }
                other => bail!("the guest says {other:?} in the middle of {}", row.name()),
            }
        }
    }

    /// Waits for the guest's services.
    ///
    /// # Errors
    /// When they do not come up.
    pub(crate) fn serving(&mut self, vm: &mut Vm) -> Result<()> {
        while self.next(vm)? != Mark::Serving {}
        Ok(())
    }

    /// Loads a service.
    ///
    /// # Errors
    /// When a client fails, or the time is up.
    pub(crate) fn load(&mut self, vm: &Vm, row: Row, size: &Size) -> Result<Measured> {
        self.go_on()?;
        let before = self.looks(vm)?;
        let began = Instant::now();
        let mut clients = Vec::new();
        for (index, command) in load::commands(row, size, &GUEST.to_string()).into_iter().enumerate() {
            let name = format!("{}-{index}", row.name());
            clients.push((self.clients.start(&name, command, &self.lab, &vm.directory)?, name));
        }
        let mut said = Vec::new();
        for (client, name) in &mut clients {
            while client.wait(Duration::from_millis(100)).is_none() {
                self.go_on().with_context(|| format!("the clients of {} were not done", row.name()))?;
            }
            let path = vm.directory.join(format!("{name}.out"));
            let text = fs::read(&path).unwrap_or_default();
            said.push(String::from_utf8_lossy(&text).into_owned());
        }
        let seconds = began.elapsed().as_secs_f64();
        let usage = Usage::between(&before, &self.looks(vm)?, seconds);
        let rate = load::rate(row, size, &said, seconds).map_err(|why| {
            let words: Vec<_> = clients.iter().map(|(client, _)| client.last_words(2)).collect();
            anyhow::anyhow!("{why}; {}", words.join("; "))
        })?;
        Ok(Measured { rates: vec![rate], usage, hash: None })
    }

    /// The log of a guest that idles.
    ///
    /// # Errors
    /// When a side does not tell.
    pub(crate) fn idle(&mut self, vm: &Vm, size: &Size) -> Result<Usage> {
        // What the last load left to do.
        self.pause(Duration::from_secs(2))?;
        let (before, began) = (self.looks(vm)?, Instant::now());
        self.pause(Duration::from_secs(size.idle.into()))?;
        Ok(Usage::between(&before, &self.looks(vm)?, began.elapsed().as_secs_f64()))
    }

    /// Kills the primary and waits until the backup runs the VM: milliseconds until then as seen from here, and what
    /// the backup says of it.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn failover(&mut self, vm: &mut Vm) -> Result<(f64, Vec<Event>)> {
        let Runs::Tandem(side) = &mut vm.process else { bail!("not a pair") };
        let began = Instant::now();
        side.process.kill();
        let backup = self.backup.as_mut().context("there is no backup")?;
        let events = go_live(backup, Duration::from_secs(2) * self.pace.patience)?;
        Ok((began.elapsed().as_secs_f64() * 1e3, events))
    }

    fn pause(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.go_on()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The next thing that the guest says.
    fn next(&self, vm: &mut Vm) -> Result<Mark> {
        loop {
            while !vm.told.is_empty() {
                match mark(&vm.told.remove(0)) {
                    Some(Mark::Failed(why)) => bail!("the guest failed: {why}"),
                    Some(mark) => return Ok(mark),
                    None => {}
                }
            }
            vm.listen()?;
            if vm.told.is_empty() {
                self.go_on().with_context(|| format!("waiting for the guest: {}", vm.state()))?;
                vm.must_run()?;
                std::thread::sleep(LOOK);
            }
        }
    }
}

impl Vm {
    /// Reads what is new on the console.
    fn listen(&mut self) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = fs::File::open(&self.console)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        self.told.extend(self.lines.push(&bytes));
        Ok(())
    }

    fn must_run(&mut self) -> Result<()> {
        match &mut self.process {
            Runs::Tandem(side) => side.must_run(),
            Runs::Qemu(process) => match process.ended() {
                Some(status) => bail!("QEMU ended ({status}): {}", process.last_words(3)),
                None => Ok(()),
            },
        }
    }

    /// How it is, for somebody who wonders why it takes so long.
    pub(crate) fn state(&mut self) -> String {
        match &mut self.process {
            Runs::Tandem(side) => side.state(),
            Runs::Qemu(process) => format!("QEMU runs as process {}", process.pid()),
        }
    }
}

/// The guest's image, mounted for the clients: the same programs on both ends.
#[derive(Debug)]
struct Clients {
    root: PathBuf,
}

impl Clients {
    fn new(machine: &Machine) -> Result<Self> {
        let root = machine.directory.join("clients");
        fs::create_dir(&root)?;
        let clients = Self { root };
        let image = machine.root();
        run("mount", &["-o".as_ref(), "ro".as_ref(), image.as_os_str(), clients.root.as_os_str()])?;
        run("mount", &["--bind".as_ref(), "/dev".as_ref(), clients.root.join("dev").as_os_str()])?;
        run(
            "mount",
            &["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref(), clients.root.join("tmp").as_os_str()],
        )?;
        Ok(clients)
    }

    fn start(&self, name: &str, command: load::Command, lab: &Lab, directory: &Path) -> Result<Process> {
        Launch::new(name, Path::new("chroot"))
            .args([self.root.as_os_str()])
            .args(command)
            .inside(lab.client())
            .on_core(CORES[0])
            .output(directory)?
            .start()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for name in ["tmp", "dev", ""] {
            let _ = Command::new("umount").arg(self.root.join(name)).status();
        }
    }
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result<()> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
