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
    let made = |script: &str| -> anyhow::Result<PathBuf> {
        let output = Command::new(scripts().join(script)).arg("--path").output();
        let output = output.with_context(|| format!("cannot run tests/linux/{script}"))?;
        let path = String::from_utf8(output.stdout)?;
        match path.lines().last() {
            Some(path) if output.status.success() => Ok(PathBuf::from(path)),
            _ => bail!("the Linux guest is not built: make kernel initramfs"),
        }
    };
    let cmdline = scripts().join("guest.cmdline");
    let cmdline =
        std::fs::read_to_string(&cmdline).with_context(|| format!("cannot read {}", cmdline.display()))?;
    Ok(Guest::Linux {
        kernel: made("build-kernel")?.join("bzImage"),
        initrd: made("initramfs")?,
        cmdline: cmdline.split_whitespace().collect::<Vec<_>>().join(" "),
        trapped_tsc: Path::new(DEVICE).exists(),
    })
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
    let error = Command::new(scripts().join("in-vng"))
        .args((time == Time::Counted).then_some("--counted"))
        .args(["--cpus", "2", "--memory", "4G", "--timeout", &seconds.to_string(), "--"])
        .arg(this)
        .args(std::env::args_os().skip(1))
        .env("TANDEM_BIN", tandem)
        .exec();
    anyhow::Error::new(error).context("cannot run tests/linux/in-vng")
}

/// `tests/linux` of the checkout that this was built from.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("linux")
}
