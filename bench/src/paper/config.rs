//! The config of the measured VM, and QEMU's command line for the same.

use std::ffi::OsString;
use std::path::Path;

use tandem_tests::config::{Pace, net_section, pair_section};
use tandem_tests::lab::{TAP, guest_mac};

/// The VM's name.
pub(crate) const NAME: &str = "bench";
/// The guest's memory in MiB.
pub(crate) const MEMORY: u32 = 384;
/// Beside what every guest gets.
const ROOT: &str = "root=/dev/vda ro init=/sbin/bench-init tandem.ip=10.77.0.2/24";

/// What the VM is told to do: the end of its command line.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// `tandem.do=…` of [`super::size::Size::batch`].
    pub(crate) batch: Option<String>,
    /// Whether its services start afterwards.
    pub(crate) serve: bool,
}

impl Orders {
    /// The kernel's command line, for a VM as Tandem shows it.
    pub(crate) fn cmdline(&self, base: &str) -> String {
        let mut line = format!("{base} {ROOT}");
        if let Some(batch) = &self.batch {
            line.push_str(&format!(" {batch}"));
        }
        if self.serve {
            line.push_str(" tandem.serve");
        }
        line
    }
}

/// The text of a config beside which lie `kernel`, `data.ext4`, `pair.key` and `arbiter.img`.
pub(crate) fn config(root: &Path, cmdline: &str, pace: Pace) -> String {
    format!(
        "name = {NAME:?}\n\n[machine]\nmemory_mib = {MEMORY}\nkernel = \"kernel\"\ncmdline = {cmdline:?}\n\
         tick_bound_ms = {}\n\n{}\
         [[disk]]\npath = {:?}\nread_only = true\n\n[[disk]]\npath = \"data.ext4\"\n\n{}",
        pace.tick_bound_ms,
        net_section(),
        root.display().to_string(),
        pair_section(pace),
    )
}

/// What is hidden from QEMU's guest as Tandem hides it from its own: the clocks of the host, the APIC.
pub(crate) const HIDDEN: &str =
    ",-tsc,-apic,-x2apic,-kvmclock,-kvm-asyncpf,-kvm-asyncpf-int,-kvm-steal-time,-kvm-pv-eoi";

/// QEMU's arguments for the same machine: kernel, memory, disks and virtio-mmio devices, 8259 and 8254, no APIC.
pub(crate) fn qemu(root: &Path, directory: &Path, cmdline: &str) -> Vec<OsString> {
    let cpu = format!("host{HIDDEN}");
    let machine = "microvm,x-option-roms=off,acpi=off,pic=on,pit=on,rtc=on,kernel-irqchip=off";
    let disk = |name: &str, path: &Path, more: &str| {
        format!("if=none,id={name},format=raw,file={}{more}", path.display())
    };
    let mut args: Vec<OsString> = ["-accel", "kvm", "-cpu", &cpu, "-M", machine].map(OsString::from).into();
    args.extend(["-m".into(), MEMORY.to_string().into()]);
    args.extend(
        ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel"]
            .map(OsString::from),
    );
    args.push(directory.join("kernel").into());
    args.extend(["-append".into(), cmdline.into()]);
    for (name, path, more) in [("root", root, ",readonly=on"), ("data", &directory.join("data.ext4"), "")] {
        args.extend(["-drive".into(), disk(name, path, more).into()]);
        args.extend(["-device".into(), format!("virtio-blk-device,drive={name}").into()]);
    }
    args.extend(["-device", "virtio-rng-device"].map(OsString::from));
    let backend = format!("tap,id=net,ifname={TAP},script=no,downscript=no");
    args.extend(["-netdev".into(), backend.into()]);
    args.extend(["-device".into(), format!("virtio-net-device,netdev=net,mac={}", guest_mac()).into()]);
    args
}

/// Tandem's command line of the kernel, for a guest that finds neither HPET nor PM timer: it is left with the clock of QEMU's guest.
pub(crate) fn without_clocks(tandems: &str) -> String {
    format!("{tandems} acpi=off")
}

/// Tandem's command line of the kernel, for QEMU's microvm: no ACPI, and a triple fault resets it.
pub(crate) fn qemu_cmdline(tandems: &str) -> String {
    with_word(&without_clocks(tandems), "reboot", "reboot=t")
}

/// The line with `word` in the place of each `name=…`.
fn with_word(line: &str, name: &str, word: &str) -> String {
    let words = line
        .split_whitespace()
        .map(|old| if old.split_once('=').is_some_and(|(n, _)| n == name) { word } else { old });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_vmm::host::config::Config;

    #[test]
    fn the_config_is_one_of_tandems() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "data.ext4", "root.ext4"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let orders = Orders { batch: Some("tandem.do=jvm:2".to_owned()), serve: true };
        let text = config(&dir.path().join("root.ext4"), &orders.cmdline("quiet"), Pace::EMULATED);
        std::fs::write(dir.path().join("vm.toml"), &text).unwrap();
        let config = Config::load(&dir.path().join("vm.toml")).unwrap();
        assert!(config.pair().is_ok());
        assert!(text.contains("tandem.do=jvm:2 tandem.serve"), "{text}");
    }

    #[test]
    fn qemu_gets_the_same_disks_and_card() {
        let args = qemu(Path::new("/c/root.ext4"), Path::new("/run/1"), "quiet");
        let line = args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        for part in [
            "-accel kvm",
            "file=/c/root.ext4,readonly=on",
            "file=/run/1/data.ext4",
            "52:54:00:12:34:56",
            "ifname=tap0",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(qemu_cmdline("quiet reboot=k pci=off"), "quiet reboot=t pci=off acpi=off");
    }
}
