//! Where a report was made.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Machine, kernel, KVM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The CPU's name.
    pub(crate) machine: String,
    /// How many CPUs are there.
    pub(crate) cpus: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Which KVM, and how it translates addresses.
    pub(crate) kvm: String,
    /// QEMU's version, where it is installed.
    pub(crate) qemu: Option<String>,
    /// Tandem's version.
    pub(crate) tandem: String,
}

impl Facts {
    /// Of this machine.
    pub(crate) fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        Self {
            machine: model(&cpuinfo),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: kvm(
                |module| fs::exists(format!("/sys/module/{module}")).unwrap_or(false),
                |parameter| read(&format!("/sys/module/{parameter}")).trim().to_owned(),
            ),
            qemu: qemu_version(),
            tandem: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What QEMU says it is.
pub(crate) fn qemu_version() -> Option<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

fn model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    line.trim_start_matches([' ', '\t', ':']).to_owned()
}

fn kvm(is_loaded: impl Fn(&str) -> bool, parameter: impl Fn(&str) -> String) -> String {
    let kinds = [("kvm_intel", "ept"), ("kvm_amd", "npt"), ("kvm_pvm", "")];
    let Some((module, paging)) = kinds.into_iter().find(|(module, _)| is_loaded(module)) else {
        return "unknown".to_owned();
    };
    match parameter(&format!("{module}/parameters/{paging}")).as_str() {
        "Y" | "1" => format!("{module}, nested paging"),
        "N" | "0" => format!("{module}, shadow paging"),
        _ => module.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_kvm_is_told_with_its_paging() {
        assert_eq!(kvm(|module| module == "kvm_amd", |_| "Y".to_owned()), "kvm_amd, nested paging");
        assert_eq!(kvm(|module| module == "kvm_intel", |_| "N".to_owned()), "kvm_intel, shadow paging");
        assert_eq!(kvm(|module| module == "kvm_pvm", |_| String::new()), "kvm_pvm");
        assert_eq!(kvm(|_| false, |_| String::new()), "unknown");
    }

    #[test]
    fn the_machine_is_its_cpus_name() {
        assert_eq!(model("processor\t: 0\nmodel name\t: QEMU TCG CPU\n"), "QEMU TCG CPU");
        assert_eq!(model(""), "");
    }
}
