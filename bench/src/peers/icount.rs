//! QEMU's record and replay by instruction counting, as its documentation sets it up (docs/system/replay.rst): in software
//! (TCG, no KVM), disks behind blkreplay.
//!
//! What is compared is within QEMU: recording against the same VM that records nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tandem_tests::config::run_directory;
use tandem_tests::process::Launch;

use crate::paper::config::{Orders, qemu_cmdline};
use crate::paper::machine::{Sources, copy_disk};
use crate::report::Peer;
use crate::report::host::qemu_version;

const NAME: &str = "qemu-icount";

/// For one boot with its work, at most.
const PATIENCE: Duration = Duration::from_secs(150);

/// How QEMU counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Plain,
    Record,
    Replay,
}

/// Nothing was measured, and why.
pub(super) fn lost(why: &str) -> Peer {
    let version = qemu_version().unwrap_or_else(|| "no QEMU".to_owned());
    Peer { name: NAME.to_owned(), version, figures: BTreeMap::new(), reason: Some(why.to_owned()) }
}

/// Measures one compilation each way, each in `patience` at most.
pub(super) fn measure(sources: &Sources, cmdline: &str, patience: Duration) -> Peer {
    let version = qemu_version().unwrap_or_else(|| "no QEMU".to_owned());
    let mut figures = BTreeMap::new();
    let reason =
        all(sources, cmdline, patience.min(PATIENCE), &mut figures).err().map(|error| format!("{error:#}"));
    Peer { name: NAME.to_owned(), version, figures, reason }
}

fn all(
    sources: &Sources,
    cmdline: &str,
    patience: Duration,
    figures: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let directory = run_directory("icount")?;
    let outcome = turns(sources, cmdline, (&directory, patience), figures);
    let _ = fs::remove_dir_all(&directory);
    outcome
}

fn turns(
    sources: &Sources,
    cmdline: &str,
    (directory, patience): (&Path, Duration),
    figures: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let turn = |mode| turn(sources, cmdline, (directory, patience), mode);
    let plain = turn(Mode::Plain)?;
    let record = turn(Mode::Record)?;
    figures.insert("record_over_run".to_owned(), plain / record);
    let bytes = fs::metadata(directory.join("log")).context("QEMU wrote no log")?.len();
    figures.insert("log_mbit_s".to_owned(), bytes as f64 * 8e-6 / record);
    let replay = turn(Mode::Replay)?;
    figures.insert("replay_over_record".to_owned(), record / replay);
    Ok(())
}

/// Seconds from power-on until the guest is done.
fn turn(
    sources: &Sources,
    cmdline: &str,
    (directory, patience): (&Path, Duration),
    mode: Mode,
) -> Result<f64> {
    copy_disk(&sources.data, &directory.join("data.ext4"))?;
    let orders = Orders { batch: Some("tandem.do=compile:1".to_owned()), serve: false };
    let cmdline = orders.cmdline(&qemu_cmdline(cmdline)).replace("tandem.ip=10.77.0.2/24", "");
    let args = arguments(mode, &sources.kernel, &sources.root, directory, &cmdline);
    let began = Instant::now();
    let mut process =
        Launch::new("icount", Path::new("qemu-system-x86_64")).args(args).output(directory)?.start()?;
    let Some(status) = process.wait(patience) else { bail!("QEMU ({mode:?}) was not done in {patience:?}") };
    let took = began.elapsed().as_secs_f64();
    ensure!(status.success(), "QEMU ({mode:?}): {status}: {}", process.last_words(3));
    let said = fs::read(directory.join("icount.out")).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    ensure!(said.contains("TANDEM-BENCH-END compile"), "the guest on QEMU ({mode:?}) did not do its work");
    Ok(took)
}

fn arguments(mode: Mode, kernel: &Path, root: &Path, directory: &Path, cmdline: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = [
        "-accel",
        "tcg",
        "-cpu",
        "qemu64,-tsc,-apic",
        "-M",
        "microvm,x-option-roms=off,acpi=off,pic=on,pit=on,rtc=on",
        "-m",
        "384",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]
    .map(OsString::from)
    .into();
    args.extend(["-kernel".into(), kernel.into(), "-append".into(), cmdline.into()]);
    if mode != Mode::Plain {
        let how = if mode == Mode::Record { "record" } else { "replay" };
        let log = directory.join("log");
        args.extend(["-icount".into(), format!("shift=auto,rr={how},rrfile={}", log.display()).into()]);
    }
    for (name, path, more) in [("root", root, ",readonly=on"), ("data", &directory.join("data.ext4"), "")] {
        let direct = format!("if=none,id={name}-direct,format=raw,file={}{more}", path.display());
        let mut drive = format!("{name}-direct");
        args.extend(["-drive".into(), direct.into()]);
        if mode != Mode::Plain {
            let replayed = format!("driver=blkreplay,if=none,image={name}-direct,id={name}-replay{more}");
            args.extend(["-drive".into(), replayed.into()]);
            drive = format!("{name}-replay");
        }
        args.extend(["-device".into(), format!("virtio-blk-device,drive={drive}").into()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_behind_blkreplay_where_something_is_recorded() {
        let line = |mode| {
            let path = Path::new("/x");
            let args = arguments(mode, path, path, path, "quiet");
            args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        assert!(!line(Mode::Plain).contains("replay") && !line(Mode::Plain).contains("icount"));
        let record = line(Mode::Record);
        assert!(record.contains("-icount shift=auto,rr=record,rrfile=/x/log"), "{record}");
        assert!(record.contains("driver=blkreplay,if=none,image=data-direct,id=data-replay"), "{record}");
        assert!(line(Mode::Replay).contains("rr=replay"));
    }
}
