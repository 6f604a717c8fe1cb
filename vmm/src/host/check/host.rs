//! What else Tandem uses of the host: taps, io_uring, memory, clocks, processors, RDMA, the module.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tandem_kmod_brain::abi;
use tandem_kmod_brain::trap::Trap;

use super::probe::{Probe, ask};
use super::report::{Item, Report};
use crate::host::config::NetConfig;
use crate::machine::cpu::capture::{self, CaptureError};

/// Adds the findings that need no config.
pub(super) fn look(report: &mut Report, tandem: &Path) {
    report.add(tap(tandem));
    report.add(io_uring(tandem));
    report.add(restartable_sequences());
    report.add(huge_pages());
    report.add(clock());
    report.add(processors());
    verbs(report);
}

fn tap(tandem: &Path) -> Item {
    let answer = ask(tandem, Probe::Tap);
    if answer.ok { Item::ok("tap", answer.detail) } else { Item::note("tap", answer.detail) }
}

/// The taps that a config names: each must exist and be free.
pub(super) fn configured_tap(net: &NetConfig) -> Item {
    let item = format!("tap {}", net.tap);
    match crate::host::tap::Tap::open(&net.tap) {
        Ok(_) => Item::ok(&item, "exists and is free"),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Item::fail(&item, format!("{error}{cause}"))
        }
    }
}

fn io_uring(tandem: &Path) -> Item {
    let answer = ask(tandem, Probe::IoUring);
    if answer.ok {
        return Item::ok("io_uring", answer.detail);
    }
    let remedy = match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("1" | "2") => "it is switched off: sysctl kernel.io_uring_disabled=0",
        Some(_) => "something like a container's seccomp filter forbids it",
        None => "needs Linux 5.19 or newer",
    };
    Item::note("io_uring", answer.detail).remedy(remedy)
}

fn restartable_sequences() -> Item {
    const ITEM: &str = "rseq";
    if crate::host::leased::in_one_step() {
        return Item::ok(
            ITEM,
            "restartable sequences: a primary that is stopped and goes on sends nothing that it had in hand",
        );
    }
    Item::note(
        ITEM,
        "no restartable sequences: a primary that is stopped between its look at the lease and a packet sends that one late",
    )
    .remedy("needs CONFIG_RSEQ and glibc 2.35; GLIBC_TUNABLES must not switch glibc.pthread.rseq off")
}

fn huge_pages() -> Item {
    let free = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"))?;
        line.trim().parse::<u64>().ok()
    });
    let shmem = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let chosen = shmem.as_deref().and_then(|modes| modes.split(['[', ']']).nth(1));
    match (free, chosen) {
        (Some(free), _) if free > 0 => Item::ok("huge pages", format!("{free} free")),
        (_, Some(mode @ ("always" | "within_size" | "advise" | "force"))) => {
            Item::ok("huge pages", format!("none reserved; transparent ones for guest memory: {mode}"))
        }
        _ => Item::note("huge pages", "none: guest memory is mapped in 4 KiB pages")
            .remedy("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }
}

fn clock() -> Item {
    // SAFETY: an all-zero timespec is a valid one, and the call writes one.
    let resolution = unsafe {
        let mut resolution: libc::timespec = std::mem::zeroed();
        libc::clock_getres(libc::CLOCK_MONOTONIC, &raw mut resolution);
        resolution
    };
    const READS: u32 = 10_000;
    let begun = Instant::now();
    for _ in 0..READS {
        std::hint::black_box(Instant::now());
    }
    let read_ns = begun.elapsed().as_nanos() as f64 / f64::from(READS);
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.as_deref().unwrap_or("unknown");
    let found =
        format!("{source}: resolution {} ns, {read_ns:.0} ns a reading, {}", resolution.tv_nsec, oversleep());
    if resolution.tv_sec > 0 || resolution.tv_nsec > 1_000 {
        Item::note("clock", found)
            .remedy("high resolution timers are off: see `highres=` on the kernel command line")
    } else if read_ns > 500.0 {
        let remedy = "a reading is a system call: see \
                      /sys/devices/system/clocksource/clocksource0/available_clocksource for a faster source";
        Item::note("clock", found).remedy(remedy)
    } else {
        Item::ok("clock", found)
    }
}

/// How late a timer of 1 ms wakes, the middle of 15.
fn oversleep() -> String {
    let nap = Duration::from_millis(1);
    let mut late: Vec<Duration> = (0..15)
        .map(|_| {
            let begun = Instant::now();
            std::thread::sleep(nap);
            begun.elapsed().saturating_sub(nap)
        })
        .collect();
    late.sort_unstable();
    format!("a 1 ms timer is {} µs late", late[late.len() / 2].as_micros())
}

fn processors() -> Item {
    // SAFETY: a zeroed cpu_set_t is an empty one; the call fills it, given its size.
    let usable = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) < 0 {
            return Item::note("processors", format!("unknown: {}", std::io::Error::last_os_error()));
        }
        libc::CPU_COUNT(&set)
    };
    let isolated = read("/sys/devices/system/cpu/isolated").filter(|list| !list.is_empty());
    let isolated = isolated.map_or_else(|| "none isolated".to_owned(), |list| format!("isolated: {list}"));
    let found = format!("{usable} usable, {isolated}");
    if usable < 2 {
        return Item::note("processors", found)
            .remedy("vCPU and log share one core: give the process a second");
    }
    Item::ok("processors", found)
}

/// The kernel module; `needed` by a config that says `tsc = "trapped"`.
pub(super) fn module(needed: bool) -> Item {
    let item = "kernel module";
    match capture::probe() {
        Ok(info) => {
            let traps: Vec<_> = Trap::ALL
                .iter()
                .filter(|trap| info.traps & trap.bit() != 0)
                .map(|trap| trap.name())
                .collect();
            let isa = if info.isa == abi::ISA_SVM { "AMD-V" } else { "VT-x" };
            let usage = if needed { "" } else { "; guests have it with tsc = \"trapped\"" };
            Item::ok(item, format!("tandem traps {} on {isa}{usage}", traps.join(", ")))
        }
        Err(error) if needed => Item::fail(item, format!("tsc = \"trapped\": {error}"))
            .remedy("build and load it (kmod/README.md), or say tsc = \"hidden\""),
        Err(CaptureError::Open(_)) => {
            Item::note(item, "tandem is not loaded: the TSC is hidden from guests, not trapped")
        }
        Err(error) => Item::note(item, error.to_string()),
    }
}

#[cfg(not(feature = "rdma"))]
fn verbs(report: &mut Report) {
    let devices: Vec<String> = fs::read_dir("/sys/class/infiniband")
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    report.add(if devices.is_empty() {
        Item::note("RDMA", "no verbs devices: the log goes over TCP")
    } else {
        Item::note("RDMA", format!("{} found, but this tandem is built without RDMA", devices.join(", ")))
            .remedy("cargo build --release --features rdma")
    });
}

/// One line a port: what `transport = "rdma"` would use.
#[cfg(feature = "rdma")]
fn verbs(report: &mut Report) {
    use tandem_logchan::transport::rdma::ports;
    match ports() {
        Ok(ports) if ports.is_empty() => {
            report.add(Item::note("RDMA", "no verbs devices: the log goes over TCP"));
        }
        Ok(ports) => {
            for port in ports {
                let item = format!("RDMA {}", port.device);
                let gids = if port.gids.is_empty() { "no GID".to_owned() } else { port.gids.join(", ") };
                let found =
                    format!("port {}: {}, {}, MTU {}, {gids}", port.port, port.state, port.link, port.mtu);
                report.add(if port.active {
                    loopback(&item, &found, &port.gids)
                } else {
                    Item::note(&item, found)
                });
            }
        }
        Err(error) => report.add(Item::note("RDMA", error.to_string())),
    }
}

/// An active port, and whether it reaches itself.
#[cfg(feature = "rdma")]
fn loopback(item: &str, found: &str, gids: &[String]) -> Item {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let addresses = gids.iter().filter_map(|gid| gid.parse::<std::net::IpAddr>().ok());
    // A link-local address would need its interface too.
    let own = addresses
        .filter(|address| !matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()));
    let Some(address) = own.into_iter().next() else {
        let found = format!("{found}; no loopback ping: it has no IP address");
        return Item::note(item, found).remedy("give its network interface an address: rdma_cm needs one");
    };
    match tandem_logchan::transport::rdma::loopback(address, PATIENCE) {
        Ok(trip) => {
            Item::ok(item, format!("{found}; loopback round trip {:.1} us", trip.as_secs_f64() * 1e6))
        }
        Err(error) => {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let why = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            Item::note(item, format!("{found}; loopback ping to {address} failed: {why}"))
                .remedy("is the address in this network namespace, and ulimit -l unlimited?")
        }
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
