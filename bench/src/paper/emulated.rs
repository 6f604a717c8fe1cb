//! A run in software emulation: each kind of VM has a virtme-ng machine for itself, with both hosts of a pair in it, each on a
//! counted CPU. The machines count their own instructions, so that two of them can run at the same time.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tandem_tests::config::run_directory;
use tandem_tests::linux::script;

use super::machine::Sources;
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

/// What is left of a run's time, by the clock of the machine that it was started on.
#[derive(Debug)]
pub(crate) enum TimeLeft {
    /// This machine's clock.
    Until(Instant),
    /// What the machine outside said last, and when by the clock in here.
    Told {
        /// The file in which it says it.
        path: PathBuf,
        /// Last.
        told: Cell<(Duration, Instant)>,
    },
}

impl TimeLeft {
    /// Of a run that takes `all`.
    pub(crate) fn of(all: Duration) -> Self {
        let now = Instant::now();
        match inside() {
            None => Self::Until(now + all),
            Some(directory) => {
                let path = directory.join(LEFT);
                let told = Cell::new((read(&path).unwrap_or(all), now));
                Self::Told { path, told }
            }
        }
    }

    /// So much.
    pub(crate) fn left(&self) -> Duration {
        match self {
            Self::Until(until) => until.saturating_duration_since(Instant::now()),
            Self::Told { path, told } => {
                let (left, looked) = told.get();
                if looked.elapsed() >= TOLD_EVERY {
                    told.set((read(path).unwrap_or(left), Instant::now()));
                }
                told.get().0
            }
        }
    }
}

fn read(path: &Path) -> Option<Duration> {
    Duration::try_from_secs_f64(fs::read_to_string(path).ok()?.trim().parse().ok()?).ok()
}

/// Goes on with the same arguments inside virtme-ng machines, one for each kind of VM, two at a time: they count, and do not
/// mind company, but a run has its time. What each found, or why it did not.
///
/// # Errors
/// A thread of this program panicked.
pub(crate) fn measure(
    sources: &Sources,
    time: Duration,
    kinds: &[Kind],
) -> Result<Vec<(Kind, Result<Found, String>)>> {
    let until = Instant::now() + time;
    // A pair takes as long as the others together.
    let (pair, others): (Vec<_>, Vec<_>) = kinds.iter().copied().partition(|kind| *kind == Kind::Pair);
    let lanes = match others.as_slice() {
        [first, rest @ ..] if pair.is_empty() => vec![vec![*first], rest.to_vec()],
        _ => vec![pair, others],
    };
    let found = |kind| one(sources, kind, until).map_err(|error| format!("{error:#}"));
    let lane = |kinds: Vec<Kind>| kinds.into_iter().map(|kind| (kind, found(kind))).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes.into_iter().map(|kinds| scope.spawn(|| lane(kinds))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a thread of this program panicked"))?);
        }
        Ok(all)
    })
}

fn one(sources: &Sources, kind: Kind, until: Instant) -> Result<Found> {
    let directory = run_directory("found")?;
    let over = AtomicBool::new(false);
    let outcome = tell(&directory, until).context("cannot write the time that is left").and_then(|()| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // What cannot be written now is written the next time.
                    let _ = tell(&directory, until);
                    std::thread::sleep(TOLD_EVERY);
                }
            });
            let outcome = within(sources, kind, &directory, until);
            over.store(true, Ordering::Relaxed);
            outcome
        })
    });
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

fn within(sources: &Sources, kind: Kind, directory: &Path, until: Instant) -> Result<()> {
    let limit = until.saturating_duration_since(Instant::now()) + GRACE;
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(script("in-vng"));
    command.args(["--counted-hosts", "--memory", "4G", "--timeout", &limit.as_secs().to_string()]);
    for disk in [&sources.root, &sources.data] {
        command.arg("--disk").arg(disk);
    }
    command
        .env("TANDEM_BIN", &sources.tandem)
        .env(REPORT, directory)
        .env(KIND, serde_json::to_string(&kind)?);
    command.arg("--rw").arg(directory).arg("--").arg(&this).args(std::env::args_os().skip(1));
    let status = command.status().context("cannot run tests/linux/in-vng")?;
    ensure!(status.success(), "the run in virtme-ng failed: {status}");
    Ok(())
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
