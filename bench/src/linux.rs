//! A Linux guest: recorded against unprotected, replayed against recorded, and idle in a pair.
//!
//! The workload is the selftest of `tests/linux/guest-init`: processes, pipes, compression, hashing, and a disk
//! that is written, synced and read back. Turns alternate: run, record, replay. Where this machine's KVM takes no
//! Linux guest, everything happens inside virtme-ng, in software emulation: then only the ratios count, and time is
//! that of the instructions executed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tandem_tests::bed::{Bed, CORES, Program};
use tandem_tests::config::{Guest, Pace, Spec, run_directory};
use tandem_tests::lab;
use tandem_tests::linux::{self, Place, Time};
use tandem_tests::median::median;
use tandem_tests::process::Launch;
use tandem_tests::side::Side;
use tandem_vmm::host::shutdown::Shutdown;

use crate::memory::{MEMORY, memory_beside_the_guest};

/// Of a recorded workload by an unprotected one, at least.
const RECORD: f64 = 0.90;
/// Of the log of a guest that idles, at most, in Mbit/s.
const IDLE: f64 = 0.5;
/// In virtme-ng, everything together.
const EMULATED_SECONDS: u64 = 900;
/// The guest's disk.
const DISK: u64 = 4 << 20;

/// What to measure, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Turns of run, record and replay
    #[arg(long, default_value_t = 5)]
    turns: u32,
    /// Rounds of the workload in each; the first are slower recorded, while what the boot has written is shipped
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Seconds for which the pair is watched while its guest idles
    #[arg(long, default_value_t = 10)]
    idle: u32,
}

/// One boot with the workload.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// Of the process, all of it.
    whole: Duration,
    /// From the beginning of the workload to its end, as the guest's console tells.
    workload: Duration,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    /// In software emulation: ratios only.
    emulated: bool,
    /// Speed of the workload recorded, by unprotected.
    record_over_run: f64,
    /// Speed of a replay from power-on to the end, by its recording.
    replay_over_record: f64,
    idle_log_mbit_s: f64,
    /// The most that a side takes beside the guest's RAM.
    memory_mib: f64,
    /// The figures that were not reached.
    missed: Vec<&'static str>,
}

/// Measures, prints a table and one line of JSON.
///
/// # Errors
/// Nothing runs a Linux guest here, or one does not come up.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.turns > 0 && args.rounds > 0 && args.idle > 0, "nothing to measure");
    if let Some(obstacle) = lab::obstacle() {
        bail!("no lab can be built here: {obstacle}");
    }
    let program = Program::tandem()?;
    let pace = match linux::place(program.path())? {
        Place::Here => Pace::NATIVE,
        Place::Emulated => Pace::EMULATED,
        Place::VirtmeNg => {
            eprintln!(
                "this machine's KVM does not run Linux guests: the same inside virtme-ng, which takes minutes"
            );
            return Err(linux::go_on_in_virtme_ng(program.path(), Time::Counted, EMULATED_SECONDS));
        }
    };
    let guest = linux::guest()?;
    let lab = Workload::new(program.path(), &guest, pace, args.rounds)?;
    let (mut record_over_run, mut replay_over_record) = (Vec::new(), Vec::new());
    for turn in 1..=args.turns {
        let run = lab.turn("run", &["vm.toml"])?;
        let record = lab.turn("record", &["vm.toml", "--log", "log"])?;
        let replay = lab.turn("replay", &["log"])?;
        eprintln!(
            "turn {turn} of {}: the workload took {:.2} s, {:.2} s recorded; from power-on {:.2} s recorded, {:.2} s replayed",
            args.turns,
            run.workload.as_secs_f64(),
            record.workload.as_secs_f64(),
            record.whole.as_secs_f64(),
            replay.whole.as_secs_f64()
        );
        record_over_run.push(run.workload.as_secs_f64() / record.workload.as_secs_f64());
        replay_over_record.push(record.whole.as_secs_f64() / replay.whole.as_secs_f64());
    }
    let spec = Spec { name: "bench".to_owned(), guest, pace };
    let (idle_log_mbit_s, memory_mib) = idle_pair(program, spec, args.idle)?;
    // Of each turn, so that a machine whose speed drifts takes part of it from both.
    let (record_over_run, replay_over_record) = (median(record_over_run), median(replay_over_record));
    let figures = [
        ("record", record_over_run >= RECORD),
        ("replay", replay_over_record >= 1.0),
        ("idle log", idle_log_mbit_s <= IDLE),
        ("memory", memory_mib <= MEMORY),
    ];
    tell(&Report {
        bench: "linux",
        emulated: pace.is_emulated(),
        record_over_run,
        replay_over_record,
        idle_log_mbit_s,
        memory_mib,
        missed: figures.iter().filter(|(_, holds)| !holds).map(|(figure, _)| *figure).collect(),
    })
}

fn tell(report: &Report) -> Result<()> {
    if report.emulated {
        println!("inside software emulation, time by instructions executed: ratios only");
    }
    println!("recorded / unprotected            {:>6.2}          target {RECORD:.2}", report.record_over_run);
    println!("replayed / recorded               {:>6.2}          target 1.00", report.replay_over_record);
    println!("log of an idle guest              {:>6.2} Mbit/s   target {IDLE:.2}", report.idle_log_mbit_s);
    println!("memory beside the guest's RAM     {:>6.1} MiB      target {MEMORY:.0}", report.memory_mib);
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// A directory with the guest that runs the workload.
struct Workload {
    tandem: PathBuf,
    directory: PathBuf,
    patience: Duration,
}

impl Workload {
    fn new(tandem: &Path, guest: &Guest, pace: Pace, rounds: u32) -> Result<Self> {
        let Guest::Linux { kernel, initrd, cmdline, .. } = guest else { bail!("not a Linux guest") };
        let directory = run_directory("bench-linux")?;
        let copy = |from: &Path, name: &str| {
            // What lies on the host's files is slow to read inside virtme-ng.
            fs::copy(from, directory.join(name)).with_context(|| format!("cannot copy {}", from.display()))
        };
        copy(tandem, "tandem")?;
        copy(kernel, "kernel")?;
        copy(initrd, "initrd")?;
        fs::write(
            directory.join("vm.toml"),
            format!(
                "name = \"bench\"\n[machine]\nmemory_mib = 256\nkernel = \"kernel\"\ninitrd = \"initrd\"\n\
                 cmdline = {:?}\ntick_bound_ms = {}\n[[disk]]\npath = \"disk\"\n",
                format!("{cmdline} tandem.selftest={rounds}"),
                pace.tick_bound_ms
            ),
        )?;
        let patience = Duration::from_secs(30 + u64::from(rounds)) * pace.patience.min(5);
        Ok(Self { tandem: directory.join("tandem"), directory, patience })
    }

    /// Boots, works and ends.
    fn turn(&self, command: &str, args: &[&str]) -> Result<Took> {
        fs::File::create(self.directory.join("disk"))?.set_len(DISK)?;
        let args =
            args.iter().map(|arg| if arg.starts_with('-') { arg.into() } else { self.directory.join(arg) });
        let began = Instant::now();
        let mut process = Launch::new(command, &self.tandem)
            .args([command])
            .args(args)
            .on_core(CORES[0])
            .output(&self.directory)?
            .start()?;
        let console = self.directory.join(format!("{command}.out"));
        let says = |what: &str| {
            let text = fs::read(&console).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&format!("TANDEM-GUEST-{what} "))
        };
        let (mut ready, mut done) = (None, None);
        while done.is_none() {
            if ready.is_none() && says("READY") {
                ready = Some(Instant::now());
            }
            if ready.is_some() && says("DONE") {
                done = Some(Instant::now());
            }
            let ended = process.wait(Duration::from_millis(5));
            if ended.is_some() && !says("DONE") || began.elapsed() > self.patience {
                bail!("tandem {command} did not do the workload: {}", process.last_words(10));
            }
        }
        let Some(status) = process.wait(self.patience) else { bail!("tandem {command} does not end") };
        ensure!(status.success(), "tandem {command}: {status}: {}", process.last_words(10));
        let workload = done.zip(ready).map(|(done, ready)| done - ready).unwrap_or_default();
        Ok(Took { whole: began.elapsed(), workload })
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The log in Mbit/s while the guest of a pair idles, and the memory of a side in MiB beside the guest's RAM.
fn idle_pair(program: Program, spec: Spec, seconds: u32) -> Result<(f64, f64)> {
    eprintln!("a pair boots and idles");
    let mut bed = Bed::new("bench", program, spec, Shutdown::on_signals()?)?;
    let pair = bed.pair().context("the protected pair")?;
    // The last of the boot, and of the question that its end was found by.
    bed.pause(Duration::from_secs(2))?;
    let bytes = |side: &Side| anyhow::Ok(side.status()?.log.iter().map(|kind| kind.bytes).sum::<u64>());
    let (before, began) = (bytes(&pair.primary)?, Instant::now());
    bed.pause(Duration::from_secs(u64::from(seconds)))?;
    let bits = (bytes(&pair.primary)? - before) as f64 * 8.0;
    let rate = bits / began.elapsed().as_secs_f64() / 1e6;
    let mut memory = 0.0f64;
    for side in [&pair.primary, &pair.backup] {
        memory = memory.max(memory_beside_the_guest(side.process.pid())?);
    }
    Ok((rate, memory))
}
