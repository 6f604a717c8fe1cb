//! What a pair acknowledged is on its guest's disk, whichever side wrote it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::Verdict;
use super::story::Story;
use crate::bed::{Bed, Pair};
use crate::client::Report;
use crate::config::Guest;

/// Bytes of the disk; it is sparse.
const SIZE: u64 = 64 << 20;

/// Gives the VMs of a bed a disk with an empty ext4, the same for all of them.
///
/// # Errors
/// When their guest takes none, or mke2fs is missing or fails.
pub(super) fn give(bed: &mut Bed) -> anyhow::Result<()> {
    let path = bed.file("data.ext4");
    let Guest::Linux { data, .. } = &mut bed.spec.guest else { bail!("a disk wants the Linux guest") };
    std::fs::File::create(&path)?.set_len(SIZE)?;
    let mke2fs = ["/sbin/mke2fs", "/usr/sbin/mke2fs"].into_iter().find(|path| Path::new(path).is_file());
    let made = Command::new(mke2fs.context("mke2fs is missing: install e2fsprogs")?)
        .args(["-q", "-F", "-t", "ext4"])
        .arg(&path)
        .output()
        .context("cannot run mke2fs")?;
    ensure!(made.status.success(), "mke2fs: {}", String::from_utf8_lossy(&made.stderr).trim());
    *data = Some(path);
    Ok(())
}

/// Kills the survivor too, and starts the VM anew: what it has is what is on the disk.
pub(super) fn outlast(
    bed: &mut Bed,
    pair: &mut Pair,
    report: &mut Report,
    say: &Story,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    pair.backup.process.kill();
    let step = say.step("the VM boots from its disk")?;
    let mut anew = bed.alone()?;
    bed.lab.client().enter(|| report.read_back(bed.server(), bed.patience(5.0)))??;
    anew.must_run()?;
    drop(step);
    say.line(&format!(
        "   both killed, the VM booted anew from its disk: {} acknowledged, {} lost",
        report.acked, report.lost
    ))?;
    for violation in &report.violations {
        say.line(&format!("   wrong: {violation}"))?;
    }
    verdict.ops_lost = report.lost;
    if !report.clean() {
        verdict.verdict = format!("{} acknowledged operations are not on the disk", report.lost);
    }
    Ok(())
}
