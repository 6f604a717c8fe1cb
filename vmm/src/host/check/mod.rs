//! `tandem check`: what this host can run, found out by trying.
//!
//! Flags and capability bits are not believed: each question about KVM is a tiny guest that is run in a
//! child process with a time limit (`answer_probe` is the child's side).

/// First argument of the process that answers one probe; its name follows.
pub const INTERNAL_PROBE: &str = "internal-probe";

mod host;
mod kvm;
mod lab;
mod pair;
mod probe;
mod report;
mod snippets;
mod trials;

use std::io::Write;
use std::path::Path;

use super::config::{Config, Kernel, Tsc};
use super::guest::Guest;

pub use report::{Item, Report, State};

/// Looks at this host, for the embedded guest or for the VM of a config. `tandem` is the executable
/// that runs the probes.
#[must_use]
pub fn look_at_host(config: Option<&Config>, tandem: &Path) -> Report {
    let mut report = Report::default();
    let linux = config.is_some_and(|config| config.machine.kernel != Kernel::Embedded);
    kvm::look(&mut report, tandem, linux);
    host::look(&mut report, tandem);
    report.add(host::module(config.is_some_and(|config| config.machine.tsc == Tsc::Trapped)));
    if let Some(config) = config {
        if let Err(error) = Guest::suits(config) {
            report.add(Item::fail("guest", error.to_string()));
        }
        for net in &config.nets {
            report.add(host::configured_tap(net));
        }
        if let Some(section) = &config.pair {
            pair::look(&mut report, section, config.vm_id());
        }
    }
    let guest = if linux { report.linux_guests } else { report.embedded_guest };
    report.ok = guest && report.items.iter().all(|item| item.state != State::Fail);
    report
}

/// Tries one probe in this process and writes the answer, one line of JSON.
///
/// # Errors
/// An unknown probe, or a closed output.
pub fn answer_probe(name: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let Some(probe) = probe::Probe::of_name(name) else { anyhow::bail!("there is no probe {name:?}") };
    serde_json::to_writer(&mut *out, &trials::attempt(probe))?;
    Ok(writeln!(out)?)
}
