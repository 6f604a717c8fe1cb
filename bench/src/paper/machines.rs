//! The two virtme-ng machines of a run in software emulation.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tandem_tests::config::run_directory;

/// Set inside, where there is another machine at the other end of eth0.
const OTHER: &str = "TANDEM_BENCH_CABLE";

/// Set inside: when the run is to be over, in seconds since 1970. The machines' start counts.
const UNTIL: &str = "TANDEM_BENCH_UNTIL";

/// What the guest's root and data are called in the cache.
const DISKS: [&str; 2] = ["root.ext4", "data.ext4"];

/// For the end of what a run does when its time is up, and for the report, on a busy machine.
const GRACE: Duration = Duration::from_secs(60);

/// Set inside: where reports go; the directory of the command line is read-only there.
const REPORT: &str = "TANDEM_BENCH_REPORT";

/// Where a report that is asked for in `wanted` is written.
pub(crate) fn report_directory(wanted: &Path) -> PathBuf {
    std::env::var_os(REPORT).map_or_else(|| wanted.to_owned(), PathBuf::from)
}

/// What is left of a run's time: all of it where the run began on this machine.
pub(crate) fn time_left(all: Duration) -> Duration {
    let until = std::env::var(UNTIL).ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    until.map_or(all, |until| until.saturating_sub(since_1970()))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Whether this machine has another one as the backup's host.
pub(crate) fn there_is_another() -> bool {
    std::env::var_os(OTHER).is_some()
}

/// The guest's root and data: files of the cache, or inside a machine its disks. Its mounted files are slow to read.
pub(crate) fn disks(guest: &Path) -> [PathBuf; 2] {
    match std::env::var_os(UNTIL) {
        Some(_) => ["/dev/vda", "/dev/vdb"].map(PathBuf::from),
        None => DISKS.map(|name| guest.join(name)),
    }
}

/// The directory that `tests/linux/bench-guest` made.
///
/// # Errors
/// When it is not made yet.
pub(crate) fn guest_disks() -> Result<PathBuf> {
    let output = Command::new(script("bench-guest")).arg("--path").output();
    let output = output.context("cannot run tests/linux/bench-guest")?;
    let path = String::from_utf8(output.stdout)?;
    match path.lines().last() {
        Some(path) if output.status.success() => Ok(PathBuf::from(path)),
        _ => bail!("the guest's disks are not made: tests/linux/bench-guest"),
    }
}

/// Goes on with the same arguments inside a virtme-ng machine, with another one for the backup beside it if `pair`. Each
/// has one CPU, and a core of this machine. Ends this process as the first machine ends.
///
/// # Errors
/// When a machine cannot be started, or the first one's run fails.
pub(crate) fn go_on(tandem: &Path, report: &Path, time: Duration, pair: bool) -> Result<()> {
    let guest = guest_disks()?;
    std::fs::create_dir_all(report).with_context(|| format!("cannot make {}", report.display()))?;
    let directory = run_directory("cable")?;
    let written = directory.join("report");
    std::fs::create_dir(&written)?;
    let outcome =
        both(tandem, &guest, &written, &directory, time, pair).and_then(|()| copy_files(&written, report));
    let _ = std::fs::remove_dir_all(&directory);
    outcome
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            std::fs::copy(&path, to.join(name))
                .with_context(|| format!("cannot write into {}", to.display()))?;
        }
    }
    Ok(())
}

fn both(
    tandem: &Path,
    guest: &Path,
    report: &Path,
    directory: &Path,
    time: Duration,
    pair: bool,
) -> Result<()> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let ends = [directory.join("primary"), directory.join("backup")];
    let until = (since_1970() + time).as_secs();
    let limit = (time + GRACE).as_secs();
    let machine = |core: usize| {
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).arg(script("in-vng"));
        command.args(["--cpus", "1", "--memory", "2G", "--timeout", &limit.to_string()]);
        for disk in DISKS {
            command.arg("--disk").arg(guest.join(disk));
        }
        command.env("TANDEM_BIN", tandem).env(UNTIL, until.to_string());
        if pair {
            let (mine, other) = (&ends[core], &ends[1 - core]);
            command.arg("--cable").arg(mine).arg(other).env(OTHER, "1");
        }
        command
    };
    let cores = std::thread::available_parallelism()?.get();
    ensure!(!pair || cores > 1, "two machines need two cores, and here is one");
    let mut backup = match pair {
        true => {
            let mut command = machine(1);
            command.arg("--").arg(&this).arg("host").stdin(Stdio::null()).process_group(0);
            Some(command.spawn().context("cannot run taskset: install util-linux")?)
        }
        false => None,
    };
    let mut command = machine(0);
    command.env(REPORT, report);
    command.arg("--rw").arg(report).arg("--").arg(&this).args(std::env::args_os().skip(1));
    let status = command.status().context("cannot run taskset: install util-linux");
    if let Some(backup) = &mut backup {
        // It leaves by itself when the first machine has told it to; in-vng ends its QEMU on SIGTERM.
        for _ in 0..100 {
            if backup.try_wait()?.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        if backup.try_wait()?.is_none() {
            // SAFETY: takes no pointers; the process is not waited for yet, so that the number is still its.
            unsafe { libc::kill(backup.id() as libc::pid_t, libc::SIGTERM) };
            backup.wait()?;
        }
    }
    let status = status?;
    ensure!(status.success(), "the run in virtme-ng failed: {status}");
    Ok(())
}

/// A script of this checkout's `tests/linux`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/linux").join(name)
}
