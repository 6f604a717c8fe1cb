//! A run in software emulation: each kind of VM has a virtme-ng machine for itself, with both hosts of a pair in it, each on a
//! counted CPU. The machines count their own instructions, so that two of them can run at the same time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tandem_tests::config::run_directory;

use super::stage::Kind;
use super::turns::Turns;
use crate::report::Peer;
use crate::report::host::Facts;

/// What the guest's root and data are called in the cache.
const DISKS: [&str; 2] = ["root.ext4", "data.ext4"];

/// For the end of what a run does when its time is up, and for the report, on a busy machine.
const GRACE: Duration = Duration::from_secs(60);

/// Set inside: where what was measured goes; the directory of the command line is read-only there.
const REPORT: &str = "TANDEM_BENCH_REPORT";

/// Set inside: the kind of VM that is measured there.
const KIND: &str = "TANDEM_BENCH_KIND";

/// In that directory: what was measured, as JSON.
const FOUND: &str = "found.json";

/// And the seconds that are left. The machine's own clock counts instructions.
const LEFT: &str = "seconds-left";

/// How often that is written, by the clock out here, and read, by the clock in there.
const TOLD_EVERY: Duration = Duration::from_millis(500);

fn inside() -> Option<PathBuf> {
    std::env::var_os(REPORT).map(PathBuf::from)
}

/// The kind of VM that this run is for, where it is one of several.
pub(crate) fn kind() -> Option<Kind> {
    serde_json::from_str(&std::env::var(KIND).ok()?).ok()
}

/// What was measured in one machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) turns: Turns,
    /// Of the machine inside.
    pub(crate) facts: Facts,
    /// Other systems that were measured there.
    pub(crate) peers: Vec<Peer>,
}

impl Found {
    /// For the process outside.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn tell(&self) -> Result<()> {
        let path = inside().context("this is not inside a machine of a run")?.join(FOUND);
        fs::write(&path, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The guest's root and data: files of the cache, or inside the machine its disks. Its mounted files are slow to read.
pub(crate) fn disks(guest: &Path) -> [PathBuf; 2] {
    match inside() {
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

/// What is left of a run's time, by the clock of the machine that it was started on.
#[derive(Debug)]
pub(crate) struct TimeLeft {
    until: Instant,
    told: Option<Told>,
}

/// What the machine outside says.
#[derive(Debug)]
struct Told {
    path: PathBuf,
    left: Cell<Duration>,
    looked: Cell<Instant>,
}

impl TimeLeft {
    /// Of a run that takes `all`.
    pub(crate) fn of(all: Duration) -> Self {
        let now = Instant::now();
        let told = inside().map(|directory| {
            let path = directory.join(LEFT);
            let left = Cell::new(read(&path).unwrap_or(all));
            Told { path, left, looked: Cell::new(now) }
        });
        Self { until: now + all, told }
    }

    /// So much.
    pub(crate) fn left(&self) -> Duration {
        let Some(told) = &self.told else { return self.until.saturating_duration_since(Instant::now()) };
        if told.looked.get().elapsed() >= TOLD_EVERY {
            told.looked.set(Instant::now());
            if let Some(left) = read(&told.path) {
                told.left.set(left);
            }
        }
        told.left.get()
    }
}

fn read(path: &Path) -> Option<Duration> {
    Duration::try_from_secs_f64(fs::read_to_string(path).ok()?.trim().parse().ok()?).ok()
}

/// Goes on with the same arguments inside virtme-ng machines, one for each kind of VM: that of the pair beside those of the
/// others, which come one after the other. What each found, or why it did not.
///
/// # Errors
/// When the guest's disks are not made.
pub(crate) fn measure(
    tandem: &Path,
    time: Duration,
    kinds: &[Kind],
) -> Result<BTreeMap<Kind, Result<Found, String>>> {
    let until = Instant::now() + time;
    let guest = guest_disks()?;
    let lane = |pair: bool| {
        let kinds = kinds.iter().copied().filter(move |kind| (*kind == Kind::Pair) == pair);
        let guest = &guest;
        move || {
            kinds
                .map(|kind| (kind, one(tandem, guest, kind, until).map_err(|error| format!("{error:#}"))))
                .collect::<Vec<_>>()
        }
    };
    let found = std::thread::scope(|scope| {
        let lanes = [true, false].map(|pair| scope.spawn(lane(pair)));
        lanes.map(|lane| lane.join().map_err(|_| anyhow!("a thread of this program panicked")))
    });
    found.into_iter().try_fold(BTreeMap::new(), |mut all, lane| {
        all.extend(lane?);
        Ok(all)
    })
}

fn one(tandem: &Path, guest: &Path, kind: Kind, until: Instant) -> Result<Found> {
    let directory = run_directory("found")?;
    let over = Arc::new(AtomicBool::new(false));
    tell(&directory, until)?;
    let clock = {
        let (directory, over) = (directory.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                // What cannot be written now is written the next time.
                let _ = tell(&directory, until);
                std::thread::sleep(TOLD_EVERY);
            }
        })
    };
    let outcome = within(tandem, guest, kind, &directory, until);
    over.store(true, Ordering::Relaxed);
    let _ = clock.join();
    let found = outcome.and_then(|()| {
        let text = fs::read(directory.join(FOUND)).context("the run in virtme-ng left nothing behind")?;
        serde_json::from_slice(&text).context("the run in virtme-ng left nothing sensible behind")
    });
    let _ = fs::remove_dir_all(&directory);
    found
}

/// In one piece: who reads it sees the old or the new.
fn tell(directory: &Path, until: Instant) -> std::io::Result<()> {
    let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
    let new = directory.join("new");
    fs::write(&new, format!("{left:.3}\n"))?;
    fs::rename(new, directory.join(LEFT))
}

fn within(tandem: &Path, guest: &Path, kind: Kind, directory: &Path, until: Instant) -> Result<()> {
    let limit = until.saturating_duration_since(Instant::now()) + GRACE;
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(script("in-vng"));
    command.args(["--counted-hosts", "--memory", "4G", "--timeout", &limit.as_secs().to_string()]);
    for disk in DISKS {
        command.arg("--disk").arg(guest.join(disk));
    }
    command.env("TANDEM_BIN", tandem).env(REPORT, directory).env(KIND, serde_json::to_string(&kind)?);
    command.arg("--rw").arg(directory).arg("--").arg(&this).args(std::env::args_os().skip(1));
    let status = command.status().context("cannot run tests/linux/in-vng")?;
    ensure!(status.success(), "the run in virtme-ng failed: {status}");
    Ok(())
}

/// A script of this checkout's `tests/linux`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/linux").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_goes_in_by_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEFT);
        assert_eq!(read(&path), None);
        tell(directory.path(), Instant::now() + Duration::from_secs(100)).unwrap();
        let left = read(&path).unwrap();
        assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(50), "{left:?}");
        tell(directory.path(), Instant::now()).unwrap();
        assert_eq!(read(&path), Some(Duration::ZERO));
        for damaged in ["", "soon", "-1", "1e300"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(&path), None, "{damaged}");
        }
    }
}
