//! What this host's KVM can run.

use std::fs;
use std::io;
use std::path::Path;

use super::probe::{Answer, Probe, ask};
use super::report::{Item, Report};

/// A ring-0 instruction slower than this is emulated one by one: hardware takes under 1 ns, a whole
/// emulated host a few, KVM's instruction emulator hundreds.
const EMULATED_NS: f64 = 30.0;

/// Looks at `/dev/kvm` and adds the findings. `linux_needed` says whether a Linux guest was asked about.
pub(super) fn look(report: &mut Report, tandem: &Path, linux_needed: bool) {
    if let Some(absent) = absent() {
        report.add(absent);
        return;
    }
    let ring3 = ask(tandem, Probe::Ring3);
    let needed = [
        ("dirty log", Probe::Dirty, "forced stops need it"),
        ("MSR filter", Probe::MsrFilter, "guests could read what differs between hosts; needs Linux 5.10"),
        ("immediate exit", Probe::ImmediateExit, "ticks need it"),
    ]
    .map(|(item, probe, why)| (item, ask(tandem, probe), why));
    report.embedded_guest = ring3.ok && needed.iter().all(|(_, answer, _)| answer.ok);
    report.add(embedded(&ring3, report.embedded_guest));
    linux(report, tandem, linux_needed);
    for (item, answer, why) in needed {
        report.add(if answer.ok {
            Item::ok(item, answer.detail)
        } else {
            Item::fail(item, format!("{}: {why}", answer.detail))
        });
    }
    let optional = [
        ("sync regs", Probe::SyncRegs, "an exit costs one more system call"),
        ("single step", Probe::Step, "the step clock is not available; the exit clock needs none"),
    ];
    for (item, probe, without) in optional {
        let answer = ask(tandem, probe);
        report.add(if answer.ok {
            Item::ok(item, answer.detail)
        } else {
            Item::note(item, format!("unusable ({}): {without}", answer.detail))
        });
    }
    report.add(module_parameters());
}

/// Says so when there is no KVM to try.
fn absent() -> Option<Item> {
    let error = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").err()?;
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "load it with `modprobe kvm_intel` or `modprobe kvm_amd`; enable VT-x or SVM in the firmware; in a \
             cloud VM ask for nested virtualisation; in a container pass --device /dev/kvm"
        }
        io::ErrorKind::PermissionDenied => "join the group: usermod -aG kvm $USER, then log in again",
        _ => "see dmesg for what kvm says",
    };
    Some(Item::fail("kvm", format!("cannot open /dev/kvm: {error}")).remedy(remedy))
}

fn embedded(ring3: &Answer, usable: bool) -> Item {
    if usable {
        return Item::ok("embedded guest", format!("{}{}", ring3.detail, speed("ring 3", ring3)));
    }
    let why = if ring3.ok { "ring 3 works, but see below" } else { &ring3.detail };
    Item::fail("embedded guest", format!("cannot run: {why}"))
        .remedy("try another host or kernel; dmesg says which KVM this is")
}

/// Linux guests: ring 0 must be run by the processor, and everything a kernel does at boot must work.
fn linux(report: &mut Report, tandem: &Path, needed: bool) {
    let ring0 = ask(tandem, Probe::Ring0);
    let emulated = ring0.instruction_ns.is_some_and(|nanos| nanos > EMULATED_NS);
    let broken: Vec<String> = [
        ("SSE in ring 0", Probe::Sse),
        ("cmpxchg16b in ring 0", Probe::Cmpxchg16b),
        ("syscall", Probe::Syscall),
        ("int 0x80", Probe::Int),
        ("protected mode without paging", Probe::Protected),
        ("reads of CR3 and CR4", Probe::Control),
        ("a page that is read without an exit", Probe::ClockPage),
    ]
    .into_iter()
    .filter_map(|(what, probe)| {
        let answer = ask(tandem, probe);
        (!answer.ok).then(|| format!("{what} ({})", answer.detail))
    })
    .collect();
    report.linux_guests = report.embedded_guest && ring0.ok && !emulated && broken.is_empty();
    if report.linux_guests {
        report.add(Item::ok("Linux guests", format!("{}{}", ring0.detail, speed("ring 0", &ring0))));
        return;
    }
    let mut reasons = Vec::new();
    if !ring0.ok {
        reasons.push(format!("ring 0 does not run ({})", ring0.detail));
    } else if emulated {
        reasons.push(format!("ring 0 is emulated{}", speed("", &ring0)));
    }
    if !broken.is_empty() {
        reasons.push(format!("cannot run {}", broken.join(", ")));
    }
    if reasons.is_empty() {
        reasons.push("see what fails for the embedded guest".to_owned());
    }
    let found = format!("no: {}", reasons.join("; "));
    let item = if needed { Item::fail("Linux guests", found) } else { Item::note("Linux guests", found) };
    report.add(item.remedy("run them one level up, in virtme-ng with QEMU, or on a host with VT-x or SVM"));
}

/// Measured speed as an aside.
fn speed(ring: &str, answer: &Answer) -> String {
    let ring = if ring.is_empty() { String::new() } else { format!("{ring}: ") };
    match (answer.instruction_ns, answer.exit_us) {
        (Some(nanos), Some(micros)) => {
            format!(" ({ring}{nanos:.1} ns an instruction, {micros:.0} µs an exit)")
        }
        _ => String::new(),
    }
}

/// Which KVM this is, and what its parameters say about paging and nesting.
fn module_parameters() -> Item {
    let parameter = |path: &str| fs::read_to_string(Path::new("/sys/module").join(path)).ok();
    let on = |path: &str| parameter(path).map(|value| matches!(value.trim(), "Y" | "1"));
    let (name, paging, nested) = if Path::new("/sys/module/kvm_amd").exists() {
        ("kvm_amd", on("kvm_amd/parameters/npt"), on("kvm_amd/parameters/nested"))
    } else if Path::new("/sys/module/kvm_intel").exists() {
        ("kvm_intel", on("kvm_intel/parameters/ept"), on("kvm_intel/parameters/nested"))
    } else if Path::new("/sys/module/kvm_pvm").exists() {
        return Item::ok("paging", "kvm_pvm: shadow paging, in software");
    } else {
        return Item::note("paging", "neither kvm_amd nor kvm_intel is a module here: unknown");
    };
    let paging = match paging {
        Some(true) => "two-dimensional paging (stale TLB entries of the guest stay invisible to Tandem)",
        Some(false) => "shadow paging",
        None => "paging unknown",
    };
    let nested = if nested == Some(true) { "nesting on" } else { "nesting off" };
    Item::ok("paging", format!("{name}: {paging}, {nested}"))
}
