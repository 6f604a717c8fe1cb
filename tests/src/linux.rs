//! The Linux guest, and where it can run.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use tandem_vmm::host::check::Report;
use tandem_vmm::machine::cpu::capture::DEVICE;

use crate::config::Guest;

/// Set inside virtme-ng.
const INSIDE: &str = "TANDEM_IN_VNG";

/// Where a Linux guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Here: KVM of this machine takes it.
    Here,
    /// Here, and here is KVM in software emulation.
    Emulated,
    /// In virtme-ng, where software emulates a KVM that takes it.
    VirtmeNg,
}

/// Whether this is inside virtme-ng, where software emulates KVM.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Where this machine can run a Linux guest, as `tandem check` found by trying.
///
/// # Errors
/// When `tandem check` cannot be run.
pub fn place(tandem: &Path) -> anyhow::Result<Place> {
    if is_inside() {
        return Ok(Place::Emulated);
    }
    let output = Command::new(tandem).args(["check", "--json"]).output();
    let output = output.with_context(|| format!("cannot run {}", tandem.display()))?;
    let report: Report =
        serde_json::from_slice(&output.stdout).context("tandem check --json printed no report")?;
    Ok(if report.linux_guests { Place::Here } else { Place::VirtmeNg })
}

/// Kernel, initramfs and command line as the scripts of `tests/linux` made them; with a TSC where the kernel module is
/// loaded.
///
/// # Errors
/// When they are not made yet.
pub fn guest() -> anyhow::Result<Guest> {
    let initrd = made("initramfs", "the Linux guest is not built: make kernel initramfs")?;
    Ok(Guest::Linux {
        kernel: kernel()?,
        initrd,
        cmdline: cmdline()?,
        trapped_tsc: Path::new(DEVICE).exists(),
        data: None,
    })
}

/// The Linux guest's kernel.
///
/// # Errors
/// When it is not made yet.
pub fn kernel() -> anyhow::Result<PathBuf> {
    Ok(made("build-kernel", "the Linux guest is not built: make kernel initramfs")?.join("bzImage"))
}

/// The Linux guest's command line.
///
/// # Errors
/// When it cannot be read.
pub fn cmdline() -> anyhow::Result<String> {
    let path = script("guest.cmdline");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Where a script of `tests/linux` has put what it makes.
///
/// # Errors
/// `missing`, when it is not made yet.
pub fn made(name: &str, missing: &'static str) -> anyhow::Result<PathBuf> {
    let output = Command::new(script(name)).arg("--path").output();
    let output = output.with_context(|| format!("cannot run tests/linux/{name}"))?;
    let path = String::from_utf8(output.stdout)?;
    match path.lines().last() {
        Some(path) if output.status.success() => Ok(PathBuf::from(path)),
        _ => bail!(missing),
    }
}

/// How time passes inside virtme-ng.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// As outside.
    Real,
    /// By instructions executed, so that a busy machine measures what an idle one does.
    Counted,
}

/// Goes on inside virtme-ng, with the same arguments, and does not come back.
///
/// # Errors
/// When it cannot.
pub fn go_on_in_virtme_ng(tandem: &Path, time: Time, seconds: u64) -> anyhow::Error {
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return anyhow::Error::new(error).context("cannot find this program"),
    };
    let error = Command::new(script("in-vng"))
        .args((time == Time::Counted).then_some("--counted"))
        .args(["--cpus", "2", "--memory", "4G", "--timeout", &seconds.to_string(), "--"])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env("TANDEM_BIN", tandem)
        .exec();
    anyhow::Error::new(error).context("cannot run tests/linux/in-vng")
}

/// A file of `tests/linux` of the checkout that this was built from.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("linux").join(name)
}
